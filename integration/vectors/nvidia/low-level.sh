#!/bin/sh
# The low-level runtime of a case: records its arguments, and ends as it is told.
printf '%s\0' "$0" "$@" > "$FAKE_RT_OUT"
exit "${FAKE_RT_EXIT:-0}"
