"""Tensors out of a PyTorch checkpoint, without unpickling it.

Older models were published as pickles, which may run anything when they are loaded. Here the instructions are read one
by one and only those are carried out that lay out tensors: dictionaries, tuples, numbers, texts, and the names of
storages. Anything else, a call or a class that is not on the list, refuses the file. Called by conversions into
safetensors; nothing that serves reads such files.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.hub.uri import HubError

MOST_BYTES = 4 << 30
_DTYPES: Mapping[str, str] = {
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
}
_DICT, _TENSOR, _PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_MARK = object()


@dataclass(frozen=True, slots=True)
class _Name:
    """A global that the file refers to; never looked up."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_tensors(file: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a state dictionary by name. Raises HubError for anything but tensors, and what is damaged.

    Reads the zip form (PyTorch 1.6 and later) and the one before it.
    """
    if file.stat().st_size > MOST_BYTES:
        raise HubError(f"{file.name}: larger than {MOST_BYTES} bytes; use a model that comes as safetensors")
    try:
        parts = _zipped(file) if zipfile.is_zipfile(file) else _legacy(file)
        state = _state(parts[0])
        # A stride of 0 makes a large tensor of a small storage, and many tensors may share one.
        if sum(math.prod(t.shape) * np.dtype(t.storage.dtype).itemsize for t in state.values()) > MOST_BYTES:
            raise HubError(f"{file.name}: its tensors take more than {MOST_BYTES} bytes")
        return {name: _array(tensor, parts[1]) for name, tensor in state.items()}
    except HubError:
        raise
    except Exception as error:
        # A crafted file can upset a parser in any way; whatever it was, nothing of it is used.
        raise HubError(f"{file.name}: not a readable PyTorch checkpoint ({type(error).__name__}: {error})") from error


def _zipped(file: Path) -> tuple[Any, Callable[[_Storage], bytes]]:
    with zipfile.ZipFile(file) as archive:
        (pickled,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
            raise HubError(f"{file.name}: unpacks to more than {MOST_BYTES} bytes")
        members = {
            name: archive.read(name)
            for name in archive.namelist()
            if name.startswith(f"{folder}data/") and not name.endswith("/")
        }
        tree = _Reader(io.BytesIO(archive.read(pickled))).run()
    return tree, lambda storage: members[f"{folder}data/{storage.key}"]


def _legacy(file: Path) -> tuple[Any, Callable[[_Storage], bytes]]:
    with file.open("rb") as source:
        for _ in ("magic number", "protocol", "system"):
            _Reader(source).run()
        reader = _Reader(source)
        tree, keys = reader.run(), _Reader(source).run()
        data: dict[str, bytes] = {}
        for key in keys:
            dtype, size = reader.storages[_text(key)].dtype, int.from_bytes(source.read(8), "little")
            if size != reader.storages[key].size:
                raise HubError(
                    f"{file.name}: a storage holds {size} values, {reader.storages[key].size} were announced"
                )
            data[key] = source.read(size * np.dtype(dtype).itemsize)
    return tree, lambda storage: data[storage.key]


def _state(tree: Any) -> dict[str, _Tensor]:
    """Return the state dictionary, or the one inside a checkpoint that holds it under that name."""
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        tree = tree["state_dict"]
    if not isinstance(tree, dict) or not tree or not all(isinstance(v, _Tensor) for v in tree.values()):
        raise HubError("not a dictionary of tensors")
    return tree


def _array(tensor: _Tensor, data: Callable[[_Storage], bytes]) -> npt.NDArray[Any]:
    flat = np.frombuffer(data(tensor.storage), tensor.storage.dtype)
    reach = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True)) + 1
    if len(flat) != tensor.storage.size or reach > len(flat):
        raise HubError("a tensor lies outside of its storage")
    if math.prod(tensor.shape) > len(flat):
        raise HubError("a tensor is larger than its storage")
    strides = tuple(s * flat.itemsize for s in tensor.stride)
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
    # In the order of its axes, whatever lies behind it: writers of safetensors take the memory as it is.
    return np.array(view, order="C")


class _Reader:
    """Carries out the few instructions that lay out tensors; see the pickle virtual machine in `pickletools`."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._stack: list[Any] = []
        self._memo: dict[Any, Any] = {}
        self.storages: dict[str, _Storage] = {}

    def run(self) -> Any:
        """Return what the next pickle of the source describes. Raises HubError for an instruction not on the list."""
        for code, argument, _ in pickletools.genops(self._source):
            if code.name == "STOP":
                return self._stack.pop()
            self._step(code.name, argument)
        raise HubError("the file ends in the middle")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
            case "MARK":
                stack.append(_MARK)
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][_text(key)] = value
            case "SETITEMS":
                pairs = self._marked()
                stack[-1].update(zip(map(_text, pairs[::2]), pairs[1::2], strict=True))
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "APPENDS":
                values = self._marked()
                stack[-1].extend(values)
            case "GLOBAL":
                stack.append(self._named(argument))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_made(function, arguments))
            case "BUILD":
                stack.pop()  # the attributes of a dictionary (versions of its modules): not needed
            case _:
                raise HubError(f"the file asks for more than tensors (instruction {name}); it is not loaded")

    def _marked(self) -> list[Any]:
        at = len(self._stack) - 1 - self._stack[::-1].index(_MARK)
        found = self._stack[at + 1 :]
        del self._stack[at:]
        return found

    def _named(self, name: str) -> _Name:
        if name not in _DTYPES and name not in (_DICT, _TENSOR, _PARAMETER):
            raise HubError(f"the file asks for more than tensors ({name}); it is not loaded")
        return _Name(name)

    def _storage(self, given: Any) -> _Storage:
        kind, of, key, _, size, *_ = given
        if kind != "storage" or of.name not in _DTYPES:
            raise HubError("the file refers to something that is no storage of numbers")
        return self.storages.setdefault(_text(key), _Storage(_DTYPES[of.name], key, int(size)))


def _text(key: Any) -> str:
    """Return a key. Raises HubError for what is no text: to hash or print deeply nested tuples can end the process."""
    if not isinstance(key, str):
        raise HubError("a key that is no text")
    return key


def _made(function: Any, arguments: Any) -> Any:
    if function == _Name(_DICT) and not arguments:
        return {}
    if function == _Name(_TENSOR) and isinstance(arguments[0], _Storage):
        storage, offset, shape, stride = arguments[:4]
        tensor = _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))
        # Here, and not only where it is laid out: a negative size would be subtracted from what all of them take.
        if min((tensor.offset, *tensor.shape, *tensor.stride)) < 0:
            raise HubError("a tensor has a negative size, offset or stride")
        return tensor
    if function == _Name(_PARAMETER) and isinstance(arguments[0], _Tensor):
        return arguments[0]
    raise HubError("the file makes something that is no tensor; it is not loaded")
