import requests

response = requests.post("http://localhost:8000/api/tasks/create",
    json={"workflow": "text-to-image", "inputs": {"prompt": "...", "seed": 42}})
task_id = response.json()["task_id"]
status = requests.get(f"http://localhost:8000/api/tasks/{task_id}")
