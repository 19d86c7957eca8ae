#!/bin/sh
# Makes a picture and saves it as picture.png: create, wait, download.
#
#     sh examples/text_to_image.sh "a lighthouse at dawn"
#
# Needs curl. COMFYD_URL says where comfyd is, if not at http://localhost:8000.
set -eu
comfyd=${COMFYD_URL:-http://localhost:8000}
prompt=$(printf '%s' "${1:-a lighthouse at dawn}" | sed 's/[\\"]/\\&/g')

# The value of a field that stands at the top of an answer and holds a word.
field() {
    sed -n "s/^{\(.*,\)\{0,1\}\"$1\":\"\([^\"]*\)\".*/\2/p"
}

task=$(curl -sS --fail-with-body "$comfyd/api/tasks/create" -H 'Content-Type: application/json' \
    -d "{\"workflow\": \"text-to-image\", \"inputs\": {\"prompt\": \"$prompt\"}}" | field task_id)
echo "task $task"

status=pending
while [ "$status" = pending ] || [ "$status" = processing ]; do
    # The answer comes when the task is over, or after 30 seconds.
    status=$(curl -sS --fail-with-body "$comfyd/api/tasks/$task" -H 'Prefer: wait=30' | field status)
    echo "$status"
done
[ "$status" = completed ] || { curl -sS "$comfyd/api/tasks/$task" >&2; exit 1; }

curl -sS --fail-with-body "$comfyd/api/tasks/$task/outputs/0" -o picture.png
echo "saved picture.png"
