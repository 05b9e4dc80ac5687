/** The panel's texts in the user's language, from the locales folder of this pack. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

/** Texts by key; English where the user's language has none. */
export class Words {
  constructor(english, own) {
    this.english = english;
    this.own = own;
  }

  /** The text of a key, with {names} filled in from `values`. */
  text(key, values = {}) {
    const text = this.own[key] ?? this.english[key] ?? key;
    return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
  }
}

/** Ask the host for the texts of all packs and keep ours. */
export async function loadWords() {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  try {
    const all = await (await api.fetchApi("/i18n")).json();
    return new Words(all.en?.hyperdream ?? {}, all[locale]?.hyperdream ?? {});
  } catch {
    // Without texts the keys are shown, which are English words too.
    return new Words({}, {});
  }
}
