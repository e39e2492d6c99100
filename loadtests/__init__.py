"""What Raycommend can take: an open-loop client and benchmarks whose figures can be recomputed."""
