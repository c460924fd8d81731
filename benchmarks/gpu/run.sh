#!/usr/bin/env bash
# All that a GPU has to show, on a bare machine with CUDA, Python 3.12 and PyTorch, in about twenty minutes:
#
#     benchmarks/gpu/run.sh [--wheels DIR] [--minutes 18] [--graphs DIR] [--out DIR] [--no-tests]
#     benchmarks/gpu/run.sh --wheels DIR --collect    # only keep these pieces: others come later
#     benchmarks/gpu/run.sh --dry-run                 # the same on a CPU with a tiny model; keeps no number
#
# The card and its ceilings, the tests marked gpu, then the table, the important rows first. Every row is on disk as soon
# as it is measured, and a second run goes on where this one ended. --wheels: what prepare.sh made, pieces or whole;
# needs no network. VSUM_COMMIT names the commit where the copy has no history. Nothing is installed outside the folder
# build/gpu-site, and no setting of the card is changed.
set -euo pipefail

wheels='' minutes=18 graphs=build/gpu-graphs out=benchmarks/results tests=yes dry='' collect=''
while [ $# -gt 0 ]; do
    case $1 in
    --wheels) wheels=$2; shift ;;
    --minutes) minutes=$2; shift ;;
    --graphs) graphs=$2; shift ;;
    --out) out=$2; shift ;;
    --no-tests) tests='' ;;
    --collect) collect=yes ;;
    --dry-run) dry=--dry-run ;;
    *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
done
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
end=$(($(date +%s) + ${minutes%.*} * 60))
left() { echo $((end - $(date +%s))); }

if [ -n "$dry" ]; then
    exec "$python" -m benchmarks.gpu.bench --dry-run
fi

if [ -n "$wheels" ]; then
    site=$PWD/build/gpu-site
    mkdir -p "$site" build/gpu-wheels
    cp "$wheels"/* build/gpu-wheels/
    [ -z "$collect" ] || exit 0
    (cd build/gpu-wheels && sha256sum --check --quiet --ignore-missing SHA256SUMS)
    for first in build/gpu-wheels/*.part-00; do
        [ ! -e "$first" ] || cat "${first%.part-00}".part-* >"${first%.part-00}"
    done
    # A wheel whose pieces did not all come fails here alone, and its rows say that it is absent.
    for whole in build/gpu-wheels/*.whl; do
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "$whole" ||
            echo "run.sh: $whole could not be installed" >&2
    done
    export PYTHONPATH=$site:$PYTHONPATH
fi

# Graphs and tests are not timed, so they share the processors.
mkdir -p build
"$python" -m benchmarks.gpu.graphs --out "$graphs" >build/gpu-graphs.log 2>&1 &
exporting=$!
if [ -n "$tests" ]; then
    timeout 300 "$python" -m pytest -m gpu -q -p no:cacheprovider -W default tests/gpu || echo "run.sh: tests ended with status $?" >&2
fi
wait "$exporting" || true
cat build/gpu-graphs.log

# Status 3: the card no longer answers that process, and a new one goes on. Any other end of it is one row lost.
for _ in 1 2 3 4 5 6; do
    [ "$(left)" -gt 30 ] || break
    status=0
    timeout $(($(left) + 60)) "$python" -m benchmarks.gpu.bench --minutes "$(awk "BEGIN {print $(left) / 60}")" \
        --graphs "$graphs" --out "$out" || status=$?
    [ "$status" -ne 0 ] && [ "$status" -ne 2 ] || break
    echo "run.sh: the benchmark ended with status $status" >&2
done
exit "${status:-0}"
