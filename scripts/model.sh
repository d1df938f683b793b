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
    # Published ONNX graphs are converted without torch, and most weights without open_clip: both are large.
    graphs=cpu,convert weights=cpu,convert,train open_clip=cpu,convert,train,open-clip
    if [ "$holds" = open_clip ] || compgen -G "$export_venv/lib/python*/site-packages/open_clip" >/dev/null; then
        extras=$open_clip
    elif [ "$holds" = weights ] || compgen -G "$export_venv/lib/python*/site-packages/torch" >/dev/null; then
        extras=$weights
    else
        extras=$graphs
    fi
    scripts/venv.sh "$export_venv" "$extras"
    status=0
    while :; do
        if [ "$extras" = "$open_clip" ]; then
            convert && status=0 || status=$?
            break
        fi
        # A missing package is not an error here: with the variable, only the exit code reports it.
        ANYCLASS_EXPORT_INSTALLS=1 convert && status=0 || status=$?
        [ "$status" = "$package_missing" ] || break
        if [ "$extras" = "$graphs" ]; then
            say "these are weights, not ONNX graphs: installing PyTorch, for this conversion only"
            extras=$weights
        else
            say "this model is built by open_clip: installing it, for this conversion only"
            extras=$open_clip
        fi
        scripts/venv.sh "$export_venv" "$extras"
    done
    if [ "$status" != 0 ]; then
        die "$model was not converted (see above). If it needs an option, convert it yourself:" \
            "$export_venv/bin/anyclass-export export $source BUNDLE --OPTION, then: make run MODEL=BUNDLE"
    fi
fi
printf '%s\n' "$bundle"
