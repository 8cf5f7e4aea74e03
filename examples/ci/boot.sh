#!/bin/bash
# Boot a kernel in the laboratory and record the story in it.
#
#   examples/ci/boot.sh KERNEL DIR [RECORD-OPTION...]
#
# KERNEL: a name of `cdmtrace lab list`, or a path (with a /) to a bzImage. DIR: where
# DIR/story.arrows comes to, new or empty. RECORD-OPTION: what this kernel does not say
# of itself, such as --vm-cdm-mask bit:38 --loader libbpf.
#
# Ends with 0 if there is a recording to be judged, else with that of `cdmtrace lab run`.
set -euo pipefail
[ $# -ge 2 ] || {
	echo "usage: boot.sh KERNEL DIR [RECORD-OPTION...]" >&2
	exit 2
}
kernel=$1 dir=$2
shift 2

status=0
cdmtrace lab run --kernel "$kernel" --scenario story --run-dir "$dir" -- \
	cdmtrace record -o story.arrows "$@" -- || status=$?
# The scenario ends with 1 where it does not like the kernel. gate.sh is to judge that.
if [ "$status" -gt 1 ]; then
	echo "boot.sh: $kernel was not recorded to the end: $dir/console.log" >&2
	exit "$status"
fi
