"""Tensors out of PyTorch checkpoints without unpickling: real files of both forms, and files that ask for more."""

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from models.hub import HubError
from models.hub.efficientnet import materialise_efficientnet
from models.hub.torch_file import read_tensors


def state() -> OrderedDict:
    shared = torch.arange(24, dtype=torch.float32)
    return OrderedDict(
        plain=torch.randn(3, 4),
        turned=torch.randn(2, 3, 4).permute(2, 0, 1),
        part=shared[6:18].view(3, 4),
        other_part=shared[::2],
        whole=torch.tensor(7),
        half=torch.randn(5).half(),
        double=torch.randn(2, 2).double(),
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_tensors_are_read_as_torch_reads_them(tmp_path, zipped: bool, wrapped: bool) -> None:
    wanted, file = state(), tmp_path / "model.pth"
    torch.save({"state_dict": wanted} if wrapped else wanted, file, _use_new_zipfile_serialization=zipped)
    read = read_tensors(file)
    assert list(read) == list(wanted)
    for name, tensor in wanted.items():
        assert read[name].dtype == tensor.numpy().dtype and read[name].flags["C_CONTIGUOUS"]
        assert np.array_equal(read[name], tensor.numpy()), name


def test_parameters_of_a_module_are_tensors_too(tmp_path) -> None:
    layer = torch.nn.Linear(3, 2)
    torch.save(OrderedDict(layer.named_parameters()), tmp_path / "p.pth")
    assert np.array_equal(read_tensors(tmp_path / "p.pth")["weight"], layer.weight.detach().numpy())


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_something_is_refused_and_nothing_runs(tmp_path, zipped: bool) -> None:
    file, marker = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"weight": torch.zeros(2), "more": Evil(marker)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(HubError, match="more than tensors"):
        read_tensors(file)
    assert not marker.exists()


@pytest.mark.parametrize("what", [{"a": 1}, [], {}, torch.zeros(2), {"a": {"b": torch.zeros(1)}}, OrderedDict])
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path, what) -> None:
    torch.save(what, tmp_path / "x.pth")
    with pytest.raises(HubError):
        read_tensors(tmp_path / "x.pth")


def test_plain_pickles_and_other_files_are_refused(tmp_path) -> None:
    for content in (pickle.dumps(state), pickle.dumps({"a": 1}), b"", b"\x80", b"PK\x03\x04", os.urandom(500)):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(HubError):
            read_tensors(tmp_path / "x.pth")


def test_a_damaged_file_is_refused_or_read_and_never_raises_anything_else(tmp_path) -> None:
    file = tmp_path / "model.pth"
    torch.save(state(), file, _use_new_zipfile_serialization=False)
    good, rng = file.read_bytes(), np.random.default_rng(0)
    refused = 0
    for n in range(300):
        bad = bytearray(good)
        bad[int(rng.integers(min(len(bad), 1500)))] = int(rng.integers(256))
        file.write_bytes(bytes(bad) if n % 3 else good[: int(rng.integers(len(good)))])
        try:
            read_tensors(file)
        except HubError:
            refused += 1
    assert refused > 100


def test_a_tensor_outside_of_its_storage_is_refused(tmp_path) -> None:
    file = tmp_path / "model.pth"
    torch.save({"w": torch.zeros(4)}, file)
    changed = tmp_path / "changed.pth"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[:8] if name.endswith("data/0") else data)
    with pytest.raises(HubError, match="outside of its storage"):
        read_tensors(changed)


@pytest.mark.parametrize("several", [True, False])
def test_keys_that_are_no_text_are_refused_before_they_are_hashed(tmp_path, several: bool) -> None:
    file, key = tmp_path / "model.pth", b")" + b"\x85" * 40
    pickled = b"\x80\x02}" + (b"(" + key + b"K\x01u." if several else key + b"K\x01s.")
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("model/data.pkl", pickled)
    with pytest.raises(HubError, match="a key that is no text"):
        read_tensors(file)


def test_a_storage_key_that_is_no_text_is_refused(tmp_path) -> None:
    given = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n)X\x03\x00\x00\x00cpuK\x04tQ."
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as target:
        target.writestr("model/data.pkl", b"\x80\x02" + given)
    with pytest.raises(HubError, match="a key that is no text"):
        read_tensors(tmp_path / "model.pth")


def test_a_small_storage_makes_no_large_tensors(tmp_path, monkeypatch) -> None:
    file = tmp_path / "model.pth"
    torch.save({"w": torch.zeros(1).expand(1000)}, file)
    with pytest.raises(HubError, match="larger than its storage"):
        read_tensors(file)
    shared = torch.zeros(1000)
    torch.save({str(n): shared for n in range(20)}, file)
    monkeypatch.setattr("models.hub.torch_file.MOST_BYTES", 40_000)
    with pytest.raises(HubError, match="tensors take more than"):
        read_tensors(file)


def test_a_negative_size_takes_nothing_off_the_sum_of_all_tensors(tmp_path, monkeypatch) -> None:
    file, changed = tmp_path / "model.pth", tmp_path / "changed.pth"
    shared = torch.zeros(1000)
    torch.save({**{str(n): shared for n in range(20)}, "last": torch.zeros(7)}, file)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                shape = b"K\x07\x85"  # (7,)
                assert data.count(shape) == 1
                data = data.replace(shape, b"J" + (-100_000).to_bytes(4, "little", signed=True) + b"\x85")
            target.writestr(name, data)
    monkeypatch.setattr("models.hub.torch_file.MOST_BYTES", 40_000)
    monkeypatch.setattr("models.hub.torch_file._array", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(HubError, match="negative size"):
        read_tensors(changed)


def test_another_network_than_efficientnet_lite0_is_refused_and_leaves_nothing(tmp_path) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(HubError, match="belongs to no EfficientNet-Lite0"):
        materialise_efficientnet(tmp_path / "other.pth", tmp_path / "made")
    torch.save({"_bn0.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(HubError, match="not an EfficientNet-Lite0"):
        materialise_efficientnet(tmp_path / "other.pth", tmp_path / "made")
    assert not (tmp_path / "made").exists()
