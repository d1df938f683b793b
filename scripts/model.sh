#!/usr/bin/env bash
# model.sh MODEL [VENV]: prints the path of the bundle to serve. MODEL is a bundle, a hub id, a checkpoint's file or
# folder, or a training run. Anything but a bundle is converted once, in an environment of its own, and cached.
# VENV is the environment for serving; without torch, it finds out whether a conversion is needed.
. "$(dirname "$0")/lib.sh"

model=$1
venv=${2:-.venv}
export_venv=.venv-export
package_missing=3 # exit code of anyclass-export

convert() { "$export_venv/bin/anyclass-export" export "$source" "$bundle" --force >&2; }

if [ -f "$model/manifest.json" ]; then
    printf '%s\n' "$model"
    exit 0
fi

found=$("$venv/bin/python" -m model_export.export.bundle_cache "$model") || exit 1
{ read -r state && read -r source && read -r bundle && read -r holds; } <<<"$found"

if [ "$state" != ready ]; then
    say "$model is not a bundle yet: converting it to $bundle (once)"
    # Published ONNX graphs are converted without torch, so torch is installed only for weights.
    extras=cpu,convert
    if [ "$holds" = weights ]; then
        extras=cpu,convert,train
    elif compgen -G "$export_venv/lib/python*/site-packages/torch" >/dev/null; then
        extras=cpu,convert,train
    fi
    scripts/venv.sh "$export_venv" "$extras"
    status=0
    if [ "$extras" = cpu,convert ]; then
        # A missing PyTorch is not an error here: with the variable, only the exit code reports it.
        ANYCLASS_EXPORT_INSTALLS=1 convert || status=$?
    else
        convert || status=$?
    fi
    if [ "$status" = "$package_missing" ] && [ "$extras" = cpu,convert ]; then
        say "these are weights, not ONNX graphs: installing PyTorch, for this conversion only"
        scripts/venv.sh "$export_venv" cpu,convert,train
        status=0
        convert || status=$?
    fi
    if [ "$status" != 0 ]; then
        die "$model was not converted (see above). If it needs an option, convert it yourself:" \
            "$export_venv/bin/anyclass-export export $source BUNDLE --OPTION, then: make run MODEL=BUNDLE"
    fi
fi
printf '%s\n' "$bundle"
