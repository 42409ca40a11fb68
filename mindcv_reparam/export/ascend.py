"""What Ascend's converters want beside a model: AIPP's normalisation, gears of the batch, and their command lines.

Sources: MindSpore Lite's "Ascend Conversion Tool Description" (the ``[ascend_context]`` section of its configuration)
and the ATC manual of CANN (``--framework``, ``--dynamic_batch_size``, ``--insert_op_conf``). Not run on Ascend here.
"""

from collections.abc import Mapping, Sequence

from mindcv_reparam.bundle.manifest import Format, Manifest
from mindcv_reparam.errors import UserError

FOLDER = "ascend"
_GEARS = (1, 4, 8, 16)  # where any batch may come: a converter compiles one program per gear
# Of converter_lite and of atc, whether a graph computes places or not: float16, which both have by default, knows no
# integers beyond 2048; with the other, it is for products of matrices alone.
_PRECISIONS = {False: ("enforce_fp16", "force_fp16"), True: ("preferred_fp32", "allow_fp32_to_fp16")}
_MOST_GEARS, _LARGEST_GEAR = 100, 2048  # atc's --dynamic_batch_size


_READ_BY_LITE: tuple[Format, ...] = ("MINDIR", "ONNX")


def check_gears(batch_sizes: Sequence[int] | None) -> None:
    """Raises UserError where Ascend's converters refuse to compile a program for each of several batch sizes."""
    if batch_sizes is None or len(batch_sizes) == 1:
        return
    if len(batch_sizes) > _MOST_GEARS:
        raise UserError(f"batch_size has {len(batch_sizes)} sizes: Ascend's converters take at most {_MOST_GEARS}")
    if max(batch_sizes) > _LARGEST_GEAR:
        raise UserError(
            f"batch_size {max(batch_sizes)} is one of several: Ascend's converters take at most {_LARGEST_GEAR} each; "
            "more is possible as the only one"
        )


def ascend_files(manifest: Manifest) -> Mapping[str, str]:
    """The texts for the folder ``ascend`` of a bundle, by file name."""
    files = {"lite.cfg": _lite(manifest), "convert.sh": _script(manifest)}
    if _uses_aipp(manifest):
        files["aipp.cfg"] = _aipp(manifest)
    return files


def _uses_aipp(manifest: Manifest) -> bool:
    """AIPP does in front of the model what a model on pixels does by itself."""
    return manifest.input_kind == "normalized"


def _aipp(manifest: Manifest) -> str:
    """Bytes as decoded, (N, H, W, 3) RGB, become normalised (N, 3, H, W): (pixel − min_chn) · var_reci_chn."""
    lines = ["aipp_mode: static", "input_format: RGB888_U8", "csc_switch: false", "rbuv_swap_switch: false"]
    height, width = manifest.input.shape[2:]
    if height is not None:
        lines += [f"src_image_size_w: {width}", f"src_image_size_h: {height}"]
    for i, mean in enumerate(manifest.preprocessing["mean"]):
        lines.append(f"min_chn_{i}: {mean:.9g}")
    for i, std in enumerate(manifest.preprocessing["std"]):
        lines.append(f"var_reci_chn_{i}: {1 / std:.9g}")
    return "".join(["aipp_op {\n", *(f"    {line}\n" for line in lines), "}\n"])


def _gears(manifest: Manifest) -> list[tuple[int, ...]]:
    """The values that the inputs' unknown sizes may take together; none where all are known."""
    unknown = manifest.input.shape.count(None)
    if unknown == 2:  # the image's size
        height, width = manifest.preprocessing["image_resize"]
        return [(height, width), (height + height // 2, width + width // 2)]
    return [(batch,) * len(manifest.inputs) for batch in manifest.batch_sizes or _GEARS] if unknown else []


def _shapes(manifest: Manifest, form: str = "{}:{}") -> str:
    """Name and shape of every input, -1 for what is unknown."""
    shapes = {spec.name: ["-1" if size is None else str(size) for size in spec.shape] for spec in manifest.inputs}
    return ";".join(form.format(name, ",".join(shape)) for name, shape in shapes.items())


def _format(manifest: Manifest) -> str:
    return "NCHW" if manifest.input_kind == "normalized" else "ND"


def _lite(manifest: Manifest) -> str:
    """Configuration of converter_lite."""
    lines = ["[ascend_context]", f"input_format={_format(manifest)}"]
    gears = _gears(manifest)
    if gears:
        lines.append(f"input_shape={_shapes(manifest, '{}:[{}]')}")
        lines.append("dynamic_dims=" + ",".join(f"[{','.join(map(str, gear))}]" for gear in gears))
    lines.append(f"precision_mode={_PRECISIONS[manifest.results.selects][0]}")
    if _uses_aipp(manifest):
        lines.append("insert_op_config_file_path=aipp.cfg")
    return "\n".join(lines) + "\n"


def _script(manifest: Manifest) -> str:
    """A shell script with a command line per converter and processor."""
    gears = _gears(manifest)
    shapes = _shapes(manifest)
    options = [f"--input_format={_format(manifest)}", f'--input_shape="{shapes}"']
    if gears and _format(manifest) == "ND":
        options.append('--dynamic_dims="' + ";".join(",".join(map(str, gear)) for gear in gears) + '"')
    elif gears and manifest.input.shape[0] is not None:
        options.append('--dynamic_image_size="' + ";".join(f"{h},{w}" for h, w in gears) + '"')
    elif gears:
        options.append('--dynamic_batch_size="' + ",".join(str(batch) for batch, *_ in gears) + '"')
    if _uses_aipp(manifest):
        options.append("--insert_op_conf=aipp.cfg")
    if manifest.results.selects:
        options.append(f"--precision_mode={_PRECISIONS[True][1]}")
    files = manifest.files
    framework, source = ("5", files.get("ONNX")) if "ONNX" in files else ("1", files.get("AIR"))
    lite_shape = "" if gears else f' --inputShape="{shapes}"'
    lite = (
        "converter_lite --fmk=$fmk --modelFile=../$file --outputFile=../model_$soc \\\n"
        f"            --saveType=MINDIR --optimize=ascend_oriented$suffix --configFile=lite.cfg{lite_shape}"
    )
    atc = (
        f"atc --framework={framework} --model=../{source} --output=../model_$soc --soc_version=$version \\\n"
        f"            {' '.join(options)}"
    )
    if not _uses_aipp(manifest):
        atc = f'echo "{_BYTES_INTO_ATC}" >&2\n        {atc}'
    missing = 'echo "this bundle has no {} file: export it with --file_format {}" >&2; exit 2'
    read_by_lite = [kind for kind in _READ_BY_LITE if kind in files]
    return _SCRIPT.format(
        fmk=read_by_lite[0] if read_by_lite else "MINDIR",
        kinds="\n".join(f"            {kind}) file={files[kind]} ;;" for kind in read_by_lite),
        unknown=missing.format("MindIR file and no ONNX" if not read_by_lite else "$fmk", "MINDIR or ONNX"),
        lite=lite,
        atc=atc if source else missing.format("ONNX", "ONNX"),
    )


_BYTES_INTO_ATC = (
    "the input is uint8 without AIPP, which atc's manual does not list for ONNX: if atc refuses it, export with "
    "--export_input normalized"
)
_SCRIPT = """#!/bin/sh
# Compile the model for a processor, on a host with CANN's set_env.sh sourced. Not run on Ascend here.
#   sh convert.sh lite 910b    MindSpore Lite for Atlas A2 (Ascend 910B):           ../model_910b.mindir
#   sh convert.sh lite 310p    MindSpore Lite for Atlas inference (Ascend 310P):    ../model_310p.mindir
#   sh convert.sh atc 910b     an offline model for ACL, on 910B:                   ../model_910b.om
#   sh convert.sh atc 310p     an offline model for ACL, on 310P:                   ../model_310p.om
# For another processor give its whole name, as "npu-smi info" shows it with "Ascend" in front: Ascend310B4,
# Ascend910_9392, Ascend910B2 … (or 910b and the name in SOC_VERSION).
# MindSpore 2.10 writes MindIR of mind_ir_version 3. MindSpore Lite 2.0.0 reads version 1 and refuses it: take a
# MindSpore Lite of the release that wrote the file, or FMK=ONNX, which converts model.onnx instead.
set -eu
cd "$(dirname "$0")"
soc=${{2:-910b}}
case "$soc" in
    910b) version=${{SOC_VERSION:-Ascend910B4}} ;;
    310p) version=${{SOC_VERSION:-Ascend310P3}} ;;
    Ascend[0-9]*) version=$soc ;;
    *) echo "unknown processor $soc: 910b, 310p, or its whole name, such as Ascend310B4" >&2; exit 2 ;;
esac
case "$version" in  # the one processor that converter_lite's manual has a suffix for
    Ascend910B[0-9]*) suffix=:910b ;;
    *) suffix= ;;
esac
case "${{1:-}}" in
    lite)
        fmk=${{FMK:-{fmk}}}
        case "$fmk" in
{kinds}
            *) {unknown} ;;
        esac
        if ! {lite}
        then
            [ "$fmk" = ONNX ] || echo "converter_lite failed: MindSpore 2.10 writes mind_ir_version 3," \\
                "which MindSpore Lite 2.0.0 does not read; try FMK=ONNX sh convert.sh lite $soc" >&2
            exit 1
        fi
        ;;
    atc)
        {atc}
        ;;
    *) echo "usage: sh convert.sh lite|atc 910b|310p|Ascend..." >&2; exit 2 ;;
esac
"""
