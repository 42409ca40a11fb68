"""What Ascend's converters want beside a model: AIPP's normalisation, gears of the batch, and their command lines.

Sources: MindSpore Lite's "Ascend Conversion Tool Description" (the ``[ascend_context]`` section of its configuration)
and the ATC manual of CANN (``--framework``, ``--dynamic_batch_size``, ``--insert_op_conf``). Not run on Ascend here.
"""

from collections.abc import Mapping

from .manifest import Manifest

FOLDER = "ascend"
_GEARS = (1, 4, 8, 16)  # where any batch may come: a converter compiles one program per gear


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
    """The values that the input's unknown sizes may take together; none where all are known."""
    unknown = manifest.input.shape.count(None)
    if unknown == 2:  # the image's size
        height, width = manifest.preprocessing["image_resize"]
        return [(height, width), (height + height // 2, width + width // 2)]
    return [(batch,) for batch in manifest.batch_sizes or _GEARS] if unknown else []


def _shape(manifest: Manifest) -> str:
    return ",".join("-1" if size is None else str(size) for size in manifest.input.shape)


def _format(manifest: Manifest) -> str:
    return "NCHW" if manifest.input_kind == "normalized" else "ND"


def _lite(manifest: Manifest) -> str:
    """Configuration of converter_lite."""
    lines = ["[ascend_context]", f"input_format={_format(manifest)}"]
    gears = _gears(manifest)
    if gears:
        lines.append(f"input_shape={manifest.input.name}:[{_shape(manifest)}]")
        lines.append("dynamic_dims=" + ",".join(f"[{','.join(map(str, gear))}]" for gear in gears))
    lines.append("precision_mode=enforce_fp16")
    if _uses_aipp(manifest):
        lines.append("insert_op_config_file_path=aipp.cfg")
    return "\n".join(lines) + "\n"


def _script(manifest: Manifest) -> str:
    """A shell script with a command line per converter and processor."""
    gears = _gears(manifest)
    name, shape = manifest.input.name, _shape(manifest)
    options = [f"--input_format={_format(manifest)}", f'--input_shape="{name}:{shape}"']
    if gears and _format(manifest) == "ND":
        options.append('--dynamic_dims="' + ";".join(",".join(map(str, gear)) for gear in gears) + '"')
    elif gears and len(gears[0]) == 2:
        options.append('--dynamic_image_size="' + ";".join(f"{h},{w}" for h, w in gears) + '"')
    elif gears:
        options.append('--dynamic_batch_size="' + ",".join(str(batch) for (batch,) in gears) + '"')
    if _uses_aipp(manifest):
        options.append("--insert_op_conf=aipp.cfg")
    files = manifest.files
    framework, source = ("5", files.get("ONNX")) if "ONNX" in files else ("1", files.get("AIR"))
    lite_shape = "" if gears else f' --inputShape="{name}:{shape}"'
    lite = (
        f"converter_lite --fmk=MINDIR --modelFile=../{files.get('MINDIR')} --outputFile=../model_$soc \\\n"
        f"            --saveType=MINDIR --optimize=ascend_oriented:$soc --configFile=lite.cfg{lite_shape}"
    )
    atc = (
        f"atc --framework={framework} --model=../{source} --output=../model_$soc --soc_version=$version \\\n"
        f"            {' '.join(options)}"
    )
    missing = 'echo "this bundle has no {} file: export it with --file_format {}" >&2; exit 2'
    return _SCRIPT.format(
        lite=lite if "MINDIR" in files else missing.format("MindIR", "MINDIR"),
        atc=atc if source else missing.format("ONNX", "ONNX"),
    )


_SCRIPT = """#!/bin/sh
# Compile the model for a processor, on a host with CANN's set_env.sh sourced. Not run on Ascend here.
#   sh convert.sh lite 910b    MindSpore Lite for Atlas A2 (Ascend 910B):           ../model_910b.mindir
#   sh convert.sh lite 310p    MindSpore Lite for Atlas inference (Ascend 310P):    ../model_310p.mindir
#   sh convert.sh atc 910b     an offline model for ACL, on 910B:                   ../model_910b.om
#   sh convert.sh atc 310p     an offline model for ACL, on 310P:                   ../model_310p.om
# SOC_VERSION names another processor to atc, as "npu-smi info" shows it with "Ascend" in front.
set -eu
cd "$(dirname "$0")"
soc=${{2:-910b}}
case "$soc" in
    910b) version=${{SOC_VERSION:-Ascend910B4}} ;;
    310p) version=${{SOC_VERSION:-Ascend310P3}} ;;
    *) echo "unknown processor $soc: 910b or 310p" >&2; exit 2 ;;
esac
case "${{1:-}}" in
    lite)
        {lite}
        ;;
    atc)
        {atc}
        ;;
    *) echo "usage: sh convert.sh lite|atc 910b|310p" >&2; exit 2 ;;
esac
"""
