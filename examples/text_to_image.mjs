// Makes a picture and saves it: create, wait, download.
//
//     node examples/text_to_image.mjs "a lighthouse at dawn"
//
// Node.js 18 or newer, no packages. COMFYD_URL says where comfyd is, if not at http://localhost:8000.

import { randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { basename } from "node:path";

const comfyd = process.env.COMFYD_URL ?? "http://localhost:8000";

/** A request that must succeed. Errors are problems (RFC 9457): `detail` is for people, `code` for programs. */
async function call(path, options) {
  const response = await fetch(comfyd + path, options);
  if (response.ok) return response;
  const problem = await response.json();
  throw new Error(`${problem.code}: ${problem.detail} ${JSON.stringify(problem.errors ?? [])}`);
}

async function create(prompt) {
  const response = await call("/api/tasks/create", {
    method: "POST",
    // With a key the request may be sent again when its answer was lost: the same key is the same task.
    headers: { "Content-Type": "application/json", "Idempotency-Key": randomUUID() },
    body: JSON.stringify({ workflow: "text-to-image", inputs: { prompt } }),
  });
  return (await response.json()).task_id;
}

async function wait(taskId) {
  // Each answer comes when the task is over, or after 30 seconds; then we ask again.
  for (;;) {
    const task = await (await call(`/api/tasks/${taskId}`, { headers: { Prefer: "wait=30" } })).json();
    if (["completed", "failed", "cancelled"].includes(task.status)) return task;
    console.log(`${task.stage}: ${task.progress.percent} %`);
  }
}

const task = await wait(await create(process.argv.slice(2).join(" ") || "a lighthouse at dawn"));
if (task.status !== "completed") throw new Error(`${task.status}: ${JSON.stringify(task.error)}`);
for (const output of task.outputs) {
  const picture = await call(`/api/tasks/${task.task_id}/outputs/${output.index}`);
  const bytes = Buffer.from(await picture.arrayBuffer());
  await writeFile(basename(output.filename), bytes);
  console.log(`saved ${basename(output.filename)}, ${bytes.length} bytes, seed ${task.inputs.seed}`);
}
