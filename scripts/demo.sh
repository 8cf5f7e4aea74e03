#!/bin/bash
# The whole way once: record the mail thread's story on the lab kernel with the
# defects of the posted patches, and without them, and check both recordings.
#
#   scripts/demo.sh [KERNEL]       a kernel of `cdmtrace lab list`
#
# Leaves the recordings in demo/KERNEL/. Ends with 0 if the checker found what it had
# to find, and nothing where there was nothing.
set -euo pipefail

kernel=${1:-cdm-6.1}
# Those that the story is about: what the others need, it does not do.
rules=CDM001,CDM002,CDM003,CDM005,CDM010,CDM011,CDM014
out=demo/$kernel
rm -rf "$out"
mkdir -p "$out"

title() {
	printf '\n==== %s\n\n' "$*"
}

# record QUIRKS: the scenario judges itself too, without any tracer
record() {
	title "story on $kernel, quirks: $1"
	cdmtrace lab run --kernel "$kernel" --quirks "$1" --scenario story \
		--run-dir "$out/$1" -- cdmtrace record -o story.arrows -- \
		>"$out/$1.tap"
	tail -n 1 "$out/$1.tap"
}

# check QUIRKS EXPECTED-STATUS
check() {
	local trace=$out/$1/story.arrows status=0
	title "cdmtrace report $trace"
	cdmtrace report "$trace"
	title "cdmtrace check $trace"
	cdmtrace check "$trace" || status=$?
	printf '\nexit status %d\n' "$status"
	if [ "$status" -ne "$2" ]; then
		echo "demo: expected exit status $2" >&2
		exit 1
	fi
	cdmtrace check --rules "$rules" --format json "$trace" >"$out/$1.json" || true
}

cdmtrace lab build --kernel "$kernel" >/dev/null
record rfc
record none
check rfc 1
check none 0

title "rule by rule"
python3 - "$out" "$rules" <<'EOP'
import json, pathlib, sys

out, rules = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
rfc, none = (
    {rule["rule"]: rule for rule in json.loads((out / f"{name}.json").read_text())["rules"]}
    for name in ("rfc", "none")
)
bad = 0
print(f"{'rule':8} {'with rfc':24} with none")
for rule in rules:
    a, b = rfc[rule], none[rule]
    right = a["verdict"] == "violated" and b["verdict"] == "clean" and b["checked"] > 0
    bad += not right
    print(
        f"{rule:8} {a['verdict']:9} {a['findings']:3} findings   "
        f"{b['verdict']}, checked {b['checked']} times{'' if right else '   NOT AS EXPECTED'}"
    )
sys.exit(bad != 0)
EOP
