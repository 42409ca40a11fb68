"""Pickles of PyTorch read as data: without PyTorch, and without running anything that stands in them.

A pickle is a program for a small stack machine whose dangerous instructions import a name and call it. Here these make
an `Opaque` instead, which only remembers the name, so that whatever a training script kept beside its weights
(configurations, histories, NumPy's scalars, whole modules) is harmless and needs none of the packages it came from.
Only the functions of ``torch._utils`` that rebuild tensors are understood, as views of storages that lie elsewhere.
"""

import pickletools
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from mindcv_reparam.errors import UserError

_INSTRUCTIONS = 2_000_000  # of one pickle; the training state of a large network has some 10,000
_PIECE = 1 << 28  # bytes of the longest text or byte string

# By the name of the storage's class or of the dtype.
_DTYPES = {
    **{"DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bf16"},
    **{"LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1"},
    **{"BoolStorage": "?", "UntypedStorage": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8"},
}
_UNFIT = {
    "_rebuild_sparse_tensor": "is sparse: save its to_dense()",
    "_rebuild_qtensor": "is quantised: save the network before its quantisation",
    "_rebuild_nested_tensor": "is nested: save a tensor per part",
    "_rebuild_meta_tensor_no_storage": "is on the device meta, without values: save it from a real device",
}
# What no weights need. Nothing here runs it; who has put it into the file meant harm, and so may the weights.
_HOSTILE = frozenset(
    {"os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "importlib", "pty", "ctypes", "webbrowser"}
)
_HOSTILE_BUILTINS = frozenset({"eval", "exec", "compile", "open", "__import__", "execfile", "input", "breakpoint"})

_PUSH = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
        *("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE"),
        *("SHORT_BINUNICODE", "BINUNICODE8"),
    }
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Damaged(Exception):
    """The file is not what its layout promises."""


@dataclass(frozen=True)
class Name:
    """A name that a pickle wants imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Opaque(dict):
    """Something that only the packages of the file's writer could build; a dictionary, as many of them are.

    Attributes:
        name: of its class, or of the function that makes it.
        state: what its attributes would be.
    """

    def __init__(self, name: Any) -> None:
        super().__init__()
        self.name = str(name)
        self.state: Any = None


@dataclass(frozen=True)
class Storage:
    """Elements that tensors are views of.

    Attributes:
        key: their name in the file.
        dtype: NumPy's, "bf16" for bfloat16, "" where this project has no use for it.
    """

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements; `unfit` says why there is none."""

    storage: Storage | None = None
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    unfit: str = ""


class Machine:
    """Reads one pickle.

    Attributes:
        storages: all that the pickle speaks of, by their keys.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        """The object a pickle describes; the file stands behind it afterwards.

        Raises:
            Damaged: no pickle, or one of too many instructions.
            UserError: it wants to run a command.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in a name that have no meaning
                return self._run(file)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise Damaged(str(error)) from None  # an instruction out of its place

    def _run(self, file: BinaryIO) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(BinaryIO, _Bounded(file)))):
            if count > _INSTRUCTIONS:
                raise Damaged("too many instructions")
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PUSH:
            stack.append(argument)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in _TUPLES:
            values = tuple(stack[-_TUPLES[name] :])
            del stack[-_TUPLES[name] :]
            stack.append(values)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP_MARK" or (name == "POP" and self._marks and self._marks[-1] == len(stack)):
            self._marked()
        elif name == "POP":
            stack.pop()
        elif not self._collect(name) and not self._build(name, argument) and name not in ("PROTO", "FRAME", "STOP"):
            raise Damaged(f"instruction {name}")

    def _marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _collect(self, name: str) -> bool:
        """Lists, tuples, dictionaries and sets."""
        stack = self._stack
        match name:
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_SET":
                stack.append(Opaque("set"))
            case "DICT":
                values = self._marked()
                stack.append(_pairs(values))
            case "LIST":
                stack.append(self._marked())
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "FROZENSET":
                self._marked()
                stack.append(Opaque("frozenset"))
            case "SETITEM" | "SETITEMS":
                values = self._marked() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                stack[-1].update(_pairs(values))
            case "APPEND" | "APPENDS" | "ADDITEMS":
                values = [stack.pop()] if name == "APPEND" else self._marked()
                if isinstance(stack[-1], list):
                    stack[-1].extend(values)
            case _:
                return False
        return True

    def _build(self, name: str, argument: Any) -> bool:
        """Objects: whatever imports, calls or sets attributes where Python reads a pickle."""
        stack = self._stack
        match name:
            case "GLOBAL":
                stack.append(Name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                module, own = stack.pop(-2), stack.pop()
                stack.append(Name(str(module), str(own)))
            case "REDUCE" | "NEWOBJ":
                called, arguments = stack.pop(-2), stack.pop()
                stack.append(_called(called, arguments))
            case "NEWOBJ_EX":
                stack.pop()
                called, arguments = stack.pop(-2), stack.pop()
                stack.append(_called(called, arguments))
            case "INST":
                stack.append(_called(Name(*argument.split(" ", 1)), tuple(self._marked())))
            case "OBJ":
                called, *rest = self._marked()
                stack.append(_called(called, tuple(rest)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Opaque):
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(self._persistent(*stack.pop()))
            case _:
                return False
        return True

    def _persistent(self, what: str, kind: Name, key: Any, _: Any, count: Any = 0, view: Any = None) -> Any:
        """What lies outside the pickle: a storage; or a module's class, of which older files keep the source text."""
        if what == "module":
            return kind
        if view:
            raise Damaged("a storage within another one")  # of PyTorch before 0.4
        storage = Storage(str(key), _DTYPES.get(kind.name, ""), int(count))
        self.storages[storage.key] = storage
        return storage


class _Bounded:
    """A file that gives no more at once than a pickle needs."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > _PIECE:
            raise Damaged("a piece too large")
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(_PIECE)


def _pairs(values: list[Any]) -> dict[Any, Any]:
    """A dictionary of alternating keys and values. Keys are not compared with their contents, which may take for ever:
    only texts and numbers are kept."""
    if len(values) % 2:
        raise Damaged("a key without a value")
    return {k: v for k, v in zip(values[::2], values[1::2]) if isinstance(k, (str, int, float, bytes))}


def _called(called: Any, arguments: Any) -> Any:
    """What a call stands for; nothing is called."""
    if not isinstance(called, Name):
        return Opaque(called.name if isinstance(called, Opaque) else type(called).__name__)
    top = called.module.split(".")[0]
    if top in _HOSTILE or (top in ("builtins", "__builtin__") and called.name in _HOSTILE_BUILTINS):
        raise UserError(f"is refused: reading it would run {called}; save the state_dict alone where it comes from")
    if called.module == "collections" and called.name in ("OrderedDict", "defaultdict"):
        pairs = arguments[0] if called.name == "OrderedDict" and arguments else []
        return _pairs([one for pair in pairs for one in pair])
    if str(called) == "torch._tensor._rebuild_from_type_v2":  # a subclass: function, class, arguments, state
        return _called(arguments[0], arguments[2])
    if called.module == "torch._utils":
        return _tensor(called.name, arguments)
    return Opaque(called)


def _tensor(function: str, arguments: tuple[Any, ...]) -> Any:
    if function.startswith("_rebuild_parameter"):
        return arguments[0]
    if function not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        return Tensor(unfit=_UNFIT.get(function, f"is built by {function}: save it as an ordinary tensor"))
    storage, offset, shape, strides, *rest = arguments
    kind = storage.dtype
    if function == "_rebuild_tensor_v3":  # over bytes, the type beside them
        kind = _DTYPES.get(rest[2].name, "")
        storage = Storage(storage.key, kind, storage.count // int(kind[1:] or 1) if kind else 0)
    if not kind:
        return Tensor(unfit="has a type of numbers that no network here takes: save it in float32 or float16")
    return Tensor(storage, offset, tuple(shape), tuple(strides))
