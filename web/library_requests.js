/** What the panel asks of the server; a refusal becomes an Error with the server's sentence. */

import { api } from "../../scripts/api.js";

const PREFIX = "/hyperdream/library";

async function ask(path, options, words) {
  let response;
  try {
    response = await api.fetchApi(PREFIX + path, options);
  } catch {
    throw new Error(words.text("unreachable"));
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok || answer === null) {
    throw new Error(answer?.error ?? words.text("refused", { status: response.status }));
  }
  return answer;
}

function post(path, body, words) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body) }, words);
}

/** All identities, newest first. */
export async function listIdentities(words) {
  return (await ask("", {}, words)).identities;
}

/** Address of the picture beside an identity; null without one. */
export function previewAddress(identity) {
  if (identity.preview === null || !identity.name.isWellFormed?.()) return null;
  const name = encodeURIComponent(identity.name);
  return api.apiURL(`${PREFIX}/preview?name=${name}&made=${identity.preview}`);
}

/** Rename an identity; gives its new name. */
export async function renameIdentity(name, newName, words) {
  return (await post("/rename", { name, new_name: newName }, words)).name;
}

/** Delete an identity and its picture. */
export function deleteIdentity(name, words) {
  return post("/delete", { name }, words);
}

/** Keep notes, the strength for dragging, or both in the identity's file; what is not among them stays as it is. */
export function annotateIdentity(name, { notes, strength }, words) {
  return post("/annotate", { name, notes, strength }, words);
}
