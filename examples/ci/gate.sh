#!/bin/bash
# Judge what a kernel did, and hold it against what the kernel before it did.
#
#   examples/ci/gate.sh BASE.arrows PATCH.arrows DIR
#
# Leaves DIR/check.junit.xml, DIR/check.sarif and DIR/compare.md. Options of check and
# compare are given as variables: CDMTRACE_CHECK_BASELINE, CDMTRACE_CHECK_PROFILE and
# CDMTRACE_COMPARE_PROFILE, and so on.
#
# Ends with 2 for trouble, 1 for a finding that is not in the baseline or that BASE has
# not, 3 if a rule could not be judged, 0 else.
set -uo pipefail
[ $# -eq 3 ] || {
	echo "usage: gate.sh BASE.arrows PATCH.arrows DIR" >&2
	exit 2
}
base=$1 patch=$2 out=$3
mkdir -p "$out" || exit 2

form=table
[ "${GITHUB_ACTIONS:-}" = true ] && form=github
cdmtrace check --format "$form" "$patch"
checked=$?
# report FORMAT FILE: the same for programs. What it has to say on stderr was just said,
# and it ends in the same way, or was not written.
report() {
	cdmtrace check --format "$1" "$patch" >"$out/$2" 2>/dev/null
	[ $? -eq "$checked" ] || {
		echo "gate.sh: $out/$2 could not be written" >&2
		exit 2
	}
}
report junit check.junit.xml
report sarif check.sarif
cdmtrace compare --format markdown "$base" "$patch" >"$out/compare.md"
compared=$?

[ "$compared" -eq 0 ] ||
	echo "gate.sh: what is new in $patch: $out/compare.md" >&2

case "$checked $compared" in
"0 0") exit 0 ;;
"3 0") exit 3 ;;
[013]" "[01]) exit 1 ;;
*) exit 2 ;;
esac
