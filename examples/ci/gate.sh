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
base=$1 patch=$2 out=$3
mkdir -p "$out" || exit 2

form=table
[ "${GITHUB_ACTIONS:-}" = true ] && form=github
cdmtrace check --format "$form" "$patch"
checked=$?
# What these have to say on stderr has just been said.
cdmtrace check --format junit "$patch" >"$out/check.junit.xml" 2>/dev/null
cdmtrace check --format sarif "$patch" >"$out/check.sarif" 2>/dev/null
cdmtrace compare --format markdown "$base" "$patch" >"$out/compare.md"
compared=$?

case "$checked $compared" in
"0 0") exit 0 ;;
"3 0") exit 3 ;;
[013]" "[01]) exit 1 ;;
*) exit 2 ;;
esac
