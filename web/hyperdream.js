/** Entry of the browser part: the sidebar tab, identities dropped on the canvas, and lists that follow what is saved. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { acceptDrops } from "./canvas_drop.js";
import { fillExamples, followSaves } from "./identity_lists.js";
import { LibraryPanel } from "./library_panel.js";
import { loadWords } from "./words.js";

const PANEL = "hyperdream.library";

let asked = null;

/** The panel's texts, asked for once. */
function allWords() {
  asked ??= loadWords();
  return asked;
}

/** Load the panel's style sheet, once. */
function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./library.css", import.meta.url).href;
  document.head.append(link);
}

app.registerExtension({
  name: "HyperDream.Library",
  async beforeConfigureGraph(graph) {
    await fillExamples(graph, await allWords());
  },
  async setup() {
    const words = await allWords();
    const panel = new LibraryPanel(words);
    addStyle();
    acceptDrops(words);
    followSaves();
    // A finished prompt may have saved an identity.
    api.addEventListener("execution_success", () => panel.refreshIfOpen());
    app.extensionManager.registerSidebarTab({
      id: PANEL,
      icon: "pi pi-id-card",
      title: words.text("title"),
      tooltip: words.text("tooltip"),
      type: "custom",
      render: (element) => panel.open(element),
      destroy: () => panel.close(),
    });
  },
});
