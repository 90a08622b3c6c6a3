#!/usr/bin/env bash
# Half an hour on a GPU, in three commands of under ten minutes each (docs/gpu-queue.md):
#
#     bash benchmarks/gpu/loan.sh 1 h100
#     bash benchmarks/gpu/loan.sh 2 h100
#     bash benchmarks/gpu/loan.sh 3 h100; bash benchmarks/gpu/loan.sh 4 h100
#
# Every step has a time limit of its own and runs whatever the one before it said. What they print and measure is kept in
# the folder; a stage that is called again goes on with what it holds. Without flash-linear-attention but in stage 4: it
# tunes its kernels for every shape anew, for longer than a loan lasts.
set -u
stage=$1
folder=$(realpath -m "$2")
cd "$(dirname "$0")/../.." || exit 1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$folder"

step() { # SECONDS NAME COMMAND...
    local seconds=$1 name=$2
    shift 2
    echo "== $(date -u +%T) $name, at most $seconds s"
    timeout -k 5 -s INT "$seconds" "$@" >"$folder/$name.out" 2>"$folder/$name.err"
    echo "== $name: exit status $?"
    tail -n 25 "$folder/$name.err" "$folder/$name.out"
}

bench() { # NAME ARCHITECTURE BATCH EXECUTION
    step 70 "$1-$4" python3 -m hwsearch bench "$2" --device cuda:0 --backend auto --execution "$4" --visits 2 \
        --workload "decode:batch=$3,context=64k" --cost-model h100-sxm --json
}

models() { # PHASE WORKLOAD: apart, so that one is whole where the other cannot be captured
    step 225 "models-$1" python3 benchmarks/gpu/end_to_end.py --device cuda:0 --base Qwen2.5-1.5B --minutes 3 \
        --workload "$1:$2" --work "$folder/$1" -o "$folder/models-$1.json"
}

case $stage in
1)
    step 60 doctor python3 -m hwsearch doctor --device cuda:0
    # Whether layers add up to models is stage 2's.
    step 140 tests python3 -m pytest -q -m gpu -k "not add_up" \
        tests/gpu/test_gpu_profile.py tests/gpu/test_gpu_blocks.py
    step 40 host-constants python3 benchmarks/gpu/host_constants.py --device cuda:0
    step 220 operators python3 -m hwsearch profile --device cuda:0 --points 150 --visits 2 -o "$folder/torch.db" --json
    step 110 kernel-tests python3 -m pytest -q -m gpu -n 8 tests/gpu/test_gpu_kernels.py
    ;;
2)
    # A machine that has not imported torch before may take a minute to.
    step 60 import python3 -c "import torch, transformers"
    for how in cuda-graph eager; do
        bench jet jet-nemotron-2b 128 "$how"
        bench qwen3 Qwen3-1.7B 8 "$how"
    done
    models decode batch=16,context=16k
    ;;
3)
    models prefill batch=1,context=8k
    ;;
4)
    step 300 kernels python3 benchmarks/gpu/kernels.py --device cuda:0 -o "$folder/kernels.json"
    ;;
*)
    echo "stage $stage: give 1, 2, 3 or 4" >&2
    exit 2
    ;;
esac
echo "== $(date -u +%T) stage $stage is over"
