"""Files of others: paths that stay inside, kinds, limits, and errors that name the place."""

import os
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest
from annotated_types import Ge, Le
from typing_extensions import TypedDict

from mindcv_reparam.errors import UserError
from mindcv_reparam.untrusted import inside, read_bytes, read_json, read_text


class Said(TypedDict):
    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    kind: Literal["a", "b"]
    sizes: tuple[Annotated[int, Ge(1), Le(9)] | None, ...]


SCHEMA = pydantic.TypeAdapter(Said)


def read(path, text, limit=10**6):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_json(path, SCHEMA, limit=limit, remedy="write it anew")


def test_what_fits_is_read(tmp_path):
    assert read(tmp_path / "a.json", '{"kind": "a", "sizes": [1, null]}') == {"kind": "a", "sizes": (1, None)}
    assert read(tmp_path / "a.json", '\ufeff{"kind": "b", "sizes": []}') == {"kind": "b", "sizes": ()}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"kind": "c", "sizes": []}', "kind: input should be 'a' or 'b', not 'c'; write it anew"),
        ('{"sizes": []}', "kind: field required; write it anew"),
        ('{"kind": "a", "sizes": [1, "2"]}', "sizes[1]: input should be a valid integer, not '2'"),
        ('{"kind": "a", "sizes": [1, true]}', "sizes[1]: input should be a valid integer, not True"),
        ('{"kind": "a", "sizes": [-1]}', "sizes[0]: input should be greater than or equal to 1, not -1"),
        ('{"kind": "a", "sizes": [1e300]}', "sizes[0]: "),
        (f'{{"kind": "a", "sizes": [{"9" * 300}]}}', "sizes[0]: "),
        (f'{{"kind": "a", "sizes": [{"9" * 9000}]}}', "no valid JSON"),
        ('{"kind": "a", "sizes": {"0": 1}}', "sizes: input should be a valid array, not a mapping of 1"),
        ('{"kind": "a", "sizes": [], "more": 1}', "more: "),
        ('{"kind": "a", "kind": "b", "sizes": []}', "'kind' stands there twice"),
        ('{"kind": "a", "sizes": [NaN]}', "NaN is no number of JSON"),
        ('{"kind": "a", "sizes": [-Infinity]}', "-Infinity is no number of JSON"),
        ("[" * 100_000, "it is nested too deeply"),
        ("", "no valid JSON"),
        ("[]", "input should be "),
        ('{"kind": "a\\ud800", "sizes": []}', "invalid JSON"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, reason):
    with pytest.raises(UserError) as raised:
        read(tmp_path / "a.json", text)
    message = str(raised.value)
    assert reason.lower() in message.lower()
    assert message.startswith(f"{tmp_path / 'a.json'} is damaged: ")
    assert message.endswith("; write it anew")
    assert len(message) < 300 + len(str(tmp_path))


def test_limits_and_text(tmp_path):
    with pytest.raises(UserError, match="larger than the 10 bytes that such a file may have"):
        read(tmp_path / "a.json", "[1, 2, 3, 4]", limit=10)
    assert read_bytes(tmp_path / "a.json", 12) == b"[1, 2, 3, 4]"
    with pytest.raises(UserError, match="no text in UTF-8, from byte 2 on"):
        read(tmp_path / "a.json", b'{"\xe9": 1}')
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="larger than"):
        read_text(tmp_path / "huge", 1000)


def test_only_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in [
        (tmp_path / "pipe", "a pipe, socket or device"),
        ("/dev/zero", "a pipe"),
        (tmp_path, "a folder"),
    ]:
        with pytest.raises(UserError, match=f"it is {reason}"):
            read_text(path, 10)
    with pytest.raises(UserError, match="No such file"):
        read_text(tmp_path / "lost", 10)
    with pytest.raises(UserError, match="null byte"):
        read_text("nul\0", 10)
    os.symlink("circle", tmp_path / "circle")
    with pytest.raises(UserError, match="Too many levels"):
        read_text(tmp_path / "circle", 10)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../other", "a/../../other", "..", "", ".", "a\0b", "a\nb", "a\\b", "/", "x" * 300 + "/../.."],
)
def test_names_stay_inside(tmp_path, name):
    with pytest.raises(UserError, match="which is no path inside of it"):
        inside(tmp_path, name)


def test_links_stay_inside(tmp_path):
    folder = tmp_path / "folder"
    (folder / "real").mkdir(parents=True)
    (folder / "real/file").touch()
    (folder / "link").symlink_to("real")
    (folder / "out").symlink_to(tmp_path)
    (folder / "passwd").symlink_to("/etc/passwd")
    (tmp_path / "alias").symlink_to(folder)
    assert inside(folder, "link/file") == folder / "link/file"
    assert inside(tmp_path / "alias", "real/file") == tmp_path / "alias/real/file"
    assert inside(folder, "dots..in.names") == Path(folder, "dots..in.names")
    for name in ("out/x", "passwd"):
        with pytest.raises(UserError, match="a link that leads outside of"):
            inside(folder, name)
