#!/usr/bin/env python3
"""A client written for ComfyUI, with one address changed: it speaks ComfyUI's own API through comfyd.

    python3 examples/comfyui_client.py

Needs the packages `requests` and `websocket-client`. A prompt sent like this does not go through comfyd's queue: it is not stored, not
repeated when the server dies, and its files stay on the server. Use it for what you have; write new things with /api/tasks/create.
"""

import json
import os
import uuid

import requests
import websocket

# This was "http://127.0.0.1:8188".
COMFYUI = os.environ.get("COMFYD_URL", "http://localhost:8000") + "/api/comfyui"

GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "from_comfyui"}},
}


def main() -> None:
    client_id = str(uuid.uuid4())
    socket = websocket.create_connection(f"{COMFYUI.replace('http', 'ws', 1)}/ws?clientId={client_id}", timeout=60)
    answer = requests.post(f"{COMFYUI}/prompt", json={"prompt": GRAPH, "client_id": client_id}, timeout=60)
    answer.raise_for_status()
    prompt_id = answer.json()["prompt_id"]
    while True:
        message = socket.recv()
        # Binary messages are previews.
        if not isinstance(message, str):
            continue
        frame = json.loads(message)
        if frame["type"] == "executing" and frame["data"].get("prompt_id") == prompt_id:
            print("running node", frame["data"]["node"])
            if frame["data"]["node"] is None:
                break
    socket.close()
    history = requests.get(f"{COMFYUI}/history/{prompt_id}", timeout=60).json()[prompt_id]
    for output in history["outputs"].values():
        for image in output.get("images", []):
            picture = requests.get(f"{COMFYUI}/view", params=image, timeout=60)
            picture.raise_for_status()
            with open(os.path.basename(image["filename"]), "wb") as file:
                file.write(picture.content)
            print("saved", image["filename"], len(picture.content), "bytes")


main()
