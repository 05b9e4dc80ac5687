/** Entry of the browser part: adds the sidebar tab and lets identities be dropped on the canvas. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { acceptDrops } from "./canvas_drop.js";
import { LibraryPanel } from "./library_panel.js";
import { loadWords } from "./words.js";

const PANEL = "hyperdream.library";

/** Load the panel's style sheet, once. */
function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./library.css", import.meta.url).href;
  document.head.append(link);
}

app.registerExtension({
  name: "HyperDream.Library",
  async setup() {
    const words = await loadWords();
    const panel = new LibraryPanel(words);
    addStyle();
    acceptDrops(words);
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
