"""How artifacts are made: import, embed, index, train, evaluate, publish. Never imports `serve`."""
