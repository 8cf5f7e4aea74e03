#!/bin/bash
# Make tests/golden anew from the recordings that `make demo demo-foreign` has left.
set -euo pipefail

for name in cdm-6.1/rfc cdm-6.1/none foreign-6.1/rfc; do
	golden=tests/golden/${name/\//-}
	cp "demo/$name/story.arrows" "$golden.arrows"
	chmod 644 "$golden.arrows"
	status=0
	cdmtrace check "$golden.arrows" >"$golden.check.txt" || status=$?
	cdmtrace report "$golden.arrows" >"$golden.report.txt"
	echo "$golden: check ends with $status"
done
