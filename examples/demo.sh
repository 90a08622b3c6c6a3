#!/bin/sh
# The whole way, on any machine: profile this CPU briefly and fit it, then search a hybrid for an H100 with the
# cost model that ships with the package, and export it. Results go to demo/, which is made anew each time.
set -eu

# Of one thread the profiler counts the time that it had a core; several that wait for each other on a busy machine look
# many times slower than they are.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_NUM_THREADS

out=demo
rm -rf "$out"
mkdir "$out"

run() {
    printf '\n$ hwsearch'
    printf ' %s' "$@"
    printf '\n'
    hwsearch "$@"
}

run profile --device cpu --points 240 --visits 1 -o "$out/cpu.db"
run fit "$out/cpu.db" -o "$out/cpu.costmodel"
run search --base Qwen3-1.7B --device h100-sxm --quality qwen3-1.7b-sweep \
    --workload decode:batch=16,context=32768 --budget "latency<=6ms" -o "$out/run"
run export "$out/run" --pick best -o "$out/arch.json"
