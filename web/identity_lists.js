/** Keeps the lists of Load Identity nodes in step with what is saved, and lets templates start with whoever is there. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { listIdentities } from "./library_requests.js";

const LOAD = "HyperDreamLoadIdentity";
const POLISH = "HyperDreamPolishIdentity";
/** Property of a template's node whose identity is an example only; it names the kind of checkpoint that is needed. */
const EXAMPLE = "hyperdream_example_for";

/** Read the lists of all nodes again, as the key R does; newer hosts do it without a message. */
export async function refreshLists() {
  await (app.reloadNodeDefs ? app.reloadNodeDefs() : app.refreshComboInNodes?.());
}

/** Read them again after a node has saved an identity, and after polishing was stopped, which keeps its best. */
export function followSaves() {
  // Without an answer the lists stay as they are, and R is there to ask again.
  const refresh = () => refreshLists().catch(() => {});
  api.addEventListener("executed", ({ detail }) => {
    if (detail?.output?.hyperdream_saved) refresh();
  });
  api.addEventListener("execution_interrupted", ({ detail }) => {
    if (detail?.node_type?.startsWith(POLISH)) refresh();
  });
}

/** Before a graph is built: where it names an identity as an example that is not there, take another, and say so. */
export async function fillExamples(graph, words) {
  const examples = (graph?.nodes ?? []).filter((node) => node.type === LOAD && node.properties?.[EXAMPLE]);
  if (!examples.length) return;
  let identities;
  try {
    identities = await listIdentities(words);
    await refreshLists();
  } catch {
    return; // the template opens as it is, and its nodes say what is missing
  }
  const remarks = [];
  for (const node of examples) {
    const name = node.widgets_values?.[0];
    if (identities.some((identity) => identity.name === name)) continue;
    const fitting = identities.filter(({ problem, family }) => !problem && family === node.properties[EXAMPLE]);
    // An empty choice is no missing model, of which the host would warn before anything was run.
    const other = fitting.length ? fitting[remarks.length % fitting.length].name : "";
    node.widgets_values = [other];
    remarks.push(other ? words.text("took_another", { name, other }) : words.text("nobody_yet"));
  }
  for (const detail of new Set(remarks)) {
    app.extensionManager?.toast?.add({ severity: "info", summary: words.text("title"), detail, life: 8000 });
  }
}
