#!/usr/bin/env python3
"""Makes a picture and saves it: create, wait, download.

    python3 examples/text_to_image.py "a lighthouse at dawn"

Needs the package `requests`. COMFYD_URL says where comfyd is, if not at http://localhost:8000.
"""

import os
import pathlib
import sys
import uuid

import requests

COMFYD = os.environ.get("COMFYD_URL", "http://localhost:8000")


def create(prompt: str) -> str:
    # With a key the request may be sent again when its answer was lost: the same key is the same task.
    key = str(uuid.uuid4())
    body = {"workflow": "text-to-image", "inputs": {"prompt": prompt}}
    response = requests.post(f"{COMFYD}/api/tasks/create", json=body, headers={"Idempotency-Key": key}, timeout=30)
    if response.status_code >= 400:
        # Every fault of the request at once, each with its place.
        sys.exit(f"refused: {response.json()}")
    return response.json()["task_id"]


def wait(task_id: str) -> dict:
    # Each answer comes when the task is over, or after 30 seconds; then we ask again.
    while True:
        response = requests.get(f"{COMFYD}/api/tasks/{task_id}", headers={"Prefer": "wait=30"}, timeout=60)
        response.raise_for_status()
        task = response.json()
        if task["status"] in ("completed", "failed", "cancelled"):
            return task
        print(f"{task['stage']}: {task['progress']['percent']} %")


def main() -> None:
    task = wait(create(" ".join(sys.argv[1:]) or "a lighthouse at dawn"))
    if task["status"] != "completed":
        sys.exit(f"{task['status']}: {task['error']}")
    for output in task["outputs"]:
        picture = requests.get(f"{COMFYD}/api/tasks/{task['task_id']}/outputs/{output['index']}", timeout=60)
        picture.raise_for_status()
        # A name from elsewhere: only its last part may say where the file goes.
        name = pathlib.PurePosixPath(output["filename"]).name
        pathlib.Path(name).write_bytes(picture.content)
        print(f"saved {name}, {len(picture.content)} bytes, seed {task['inputs']['seed']}")


main()
