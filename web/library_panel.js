/** The sidebar's panel: a list of identities with search, and what to do while there is none. */

import { app } from "../../scripts/app.js";
import { IdentityCard } from "./identity_card.js";
import { refreshLists } from "./identity_lists.js";
import { listIdentities } from "./library_requests.js";
import { button, element, icon } from "./elements.js";

const PACK = new URL(import.meta.url).pathname.split("/").at(-2);
const QUICKSTART = "1 Quickstart";

export class LibraryPanel {
  constructor(words) {
    this.words = words;
    this.root = null;
    this.identities = [];
    this.query = "";
  }

  /** Build the panel in the host's element and fill it. */
  open(host) {
    if (this.root?.isConnected && host.contains(this.root)) return;
    const words = this.words;
    const search = element("input", { type: "search", className: "hyperdream-search", value: this.query });
    search.placeholder = words.text("search");
    search.setAttribute("aria-label", words.text("search"));
    search.addEventListener("input", () => {
      this.query = search.value;
      this.show();
    });
    const refresh = button("pi-refresh", words.text("refresh"), () => this.refresh());
    const heading = element("h2", {}, words.text("title"));
    this.count = element("span", { className: "hyperdream-count" });
    this.problem = element("p", { className: "hyperdream-problem", hidden: true });
    this.problem.setAttribute("role", "alert");
    this.list = element("div", { className: "hyperdream-list" });
    this.hint = element("p", { className: "hyperdream-hint", hidden: true }, words.text("hint"));
    this.root = element(
      "section",
      { className: "hyperdream-library" },
      element("header", {}, heading, this.count, refresh),
      search,
      this.problem,
      this.list,
      this.hint,
    );
    host.replaceChildren(this.root);
    host.classList.add("hyperdream-host");
    this.show();
    this.refresh();
  }

  /** Forget the panel's elements; the host has taken them away. */
  close() {
    this.root = null;
  }

  async refreshIfOpen() {
    if (this.root?.isConnected) await this.refresh();
  }

  /** Read the list again. */
  async refresh() {
    try {
      this.identities = await listIdentities(this.words);
      this.fail("");
    } catch (error) {
      this.fail(error.message);
    }
    this.show();
  }

  /** Show a sentence about what went wrong; none hides it. */
  fail(message) {
    if (!this.root) return;
    this.problem.textContent = message;
    this.problem.hidden = !message;
  }

  /** Read the list again and let the nodes' own lists follow. */
  async changed() {
    await this.refresh();
    await refreshLists();
  }

  show() {
    if (!this.root) return;
    const all = this.identities.filter((identity) => this.matches(identity));
    const found = [...all.filter(({ problem }) => !problem), ...all.filter(({ problem }) => problem)];
    this.count.textContent = this.identities.length ? String(this.identities.length) : "";
    this.hint.hidden = !found.some((identity) => !identity.problem);
    if (found.length) this.list.replaceChildren(...found.map((identity) => new IdentityCard(identity, this).root));
    else this.list.replaceChildren(this.identities.length ? this.nothingFound() : this.nothingYet());
  }

  matches(identity) {
    const { title, name, family_title, notes, identifier, problem } = identity;
    const text = [title, name, family_title, notes, identifier, problem].join("\n").toLocaleLowerCase();
    return this.query.toLocaleLowerCase().split(/\s+/).every((word) => text.includes(word));
  }

  nothingFound() {
    return element("p", { className: "hyperdream-empty" }, this.words.text("nothing_found", { query: this.query.trim() }));
  }

  nothingYet() {
    const words = this.words;
    const start = element("button", { type: "button", className: "hyperdream-button" }, words.text("open_quickstart"));
    start.addEventListener("click", () => this.openQuickstart());
    return element(
      "div",
      { className: "hyperdream-empty" },
      icon("pi-id-card"),
      element("strong", {}, words.text("empty_title")),
      element("p", {}, words.text("empty_text")),
      start,
    );
  }

  async openQuickstart() {
    try {
      const address = `api/workflow_templates/${encodeURIComponent(PACK)}/${encodeURIComponent(QUICKSTART)}.json`;
      const response = await fetch(address);
      if (!response.ok) throw new Error(this.words.text("refused", { status: response.status }));
      await app.loadGraphData(await response.json(), true, true, QUICKSTART);
    } catch (error) {
      this.fail(error.message);
    }
  }
}
