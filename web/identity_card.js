/** One identity in the list: picture, name, base, strength and notes; dragged, edited, renamed, deleted. */

import { app } from "../../scripts/app.js";
import { DRAG_TYPE, middleOfView, placeIdentity, renameInGraph } from "./canvas_drop.js";
import { button, element, icon } from "./elements.js";
import { annotateIdentity, deleteIdentity, previewAddress, renameIdentity } from "./library_requests.js";

export class IdentityCard {
  constructor(identity, panel) {
    this.identity = identity;
    this.panel = panel;
    this.words = panel.words;
    this.root = element("article", { className: "hyperdream-card" });
    this.root.setAttribute("aria-label", identity.title);
    if (identity.problem) this.root.classList.add("is-unreadable");
    else this.makeDraggable();
    this.show();
  }

  makeDraggable() {
    this.root.draggable = true;
    this.root.title = this.words.text("drag");
    this.root.addEventListener("dragstart", (event) => {
      const { name, strength } = this.identity;
      event.dataTransfer.setData(DRAG_TYPE, JSON.stringify({ name, strength }));
      event.dataTransfer.effectAllowed = "copy";
    });
  }

  /** The card as it is read. */
  show() {
    this.root.draggable = !this.identity.problem;
    this.root.replaceChildren(this.picture(), this.facts(), this.buttons());
  }

  picture() {
    const address = previewAddress(this.identity);
    if (address === null) {
      const symbol = this.identity.problem ? icon("pi-exclamation-triangle") : this.identity.title.slice(0, 1).toLocaleUpperCase();
      return element("div", { className: "hyperdream-picture is-missing" }, symbol);
    }
    const picture = element("img", { className: "hyperdream-picture", src: address, loading: "lazy", draggable: false });
    picture.alt = this.words.text("picture_of", { name: this.identity.title });
    picture.addEventListener("error", () => picture.replaceWith(element("div", { className: "hyperdream-picture is-missing" })));
    return picture;
  }

  facts() {
    const { title, name, family_title, strength, identifier, class_noun, notes, problem } = this.identity;
    const facts = element("div", { className: "hyperdream-facts" }, element("strong", { title: name }, title));
    if (problem) {
      facts.append(element("p", { className: "hyperdream-why", title: problem }, this.words.text("unreadable", { why: problem })));
      return facts;
    }
    const dial = this.words.text("strength_is", { strength: strength.toFixed(2) });
    facts.append(
      element("span", { className: "hyperdream-base" }, family_title),
      element("span", { className: "hyperdream-dial" }, `${dial} · “${identifier} ${class_noun}”`),
    );
    if (notes) facts.append(element("p", { className: "hyperdream-notes", title: notes }, notes));
    return facts;
  }

  buttons() {
    const words = this.words;
    const made = element("div", { className: "hyperdream-buttons" });
    if (!this.identity.problem) {
      made.append(
        button("pi-plus", words.text("add"), (event) => this.add(event)),
        button("pi-file-edit", words.text("edit"), () => this.edit()),
      );
    }
    made.append(
      button("pi-pencil", words.text("rename"), () => this.rename()),
      button("pi-trash", words.text("delete"), () => this.delete()),
    );
    return made;
  }

  /** Do something, and show what went wrong in words. */
  async attempt(action) {
    try {
      await action();
    } catch (error) {
      this.panel.fail(error.message);
    }
  }

  add(event) {
    return this.attempt(() => placeIdentity(this.identity, middleOfView(), event.shiftKey, this.words));
  }

  rename() {
    return this.attempt(async () => {
      const { name, title } = this.identity;
      const wish = { title: this.words.text("rename"), message: this.words.text("new_name"), defaultValue: title };
      const newName = await app.extensionManager.dialog.prompt(wish);
      if (!newName || newName === title) return;
      const renamed = await renameIdentity(name, newName, this.words);
      await this.panel.changed();
      renameInGraph(name, renamed);
    });
  }

  delete() {
    return this.attempt(async () => {
      const { name, title } = this.identity;
      const question = { title: this.words.text("delete"), message: this.words.text("really_delete", { name: title }) };
      if (!(await app.extensionManager.dialog.confirm({ ...question, type: "delete", itemList: [name] }))) return;
      await deleteIdentity(name, this.words);
      await this.panel.changed();
    });
  }

  /** The card as a form for notes and strength. */
  edit() {
    const { words, identity } = this;
    // Longer notes come cut from the server; what was not seen is not edited.
    const isCut = [...identity.notes].length < identity.notes_length;
    const notes = element("textarea", { value: identity.notes, rows: 4, maxLength: 2000, readOnly: isCut });
    const strength = element("input", { type: "number", min: -2, max: 2, step: 0.05, value: identity.strength });
    const before = { notes: notes.value, strength: strength.valueAsNumber };
    const keep = element("button", { type: "submit", className: "hyperdream-button" }, words.text("save"));
    const leave = element("button", { type: "button", className: "hyperdream-button is-quiet" }, words.text("cancel"));
    leave.addEventListener("click", () => this.show());
    const form = element(
      "form",
      { className: "hyperdream-form" },
      element("strong", {}, identity.title),
      element("label", {}, words.text("notes"), notes),
      ...(isCut ? [element("p", { className: "hyperdream-why" }, words.text("notes_cut", { length: identity.notes_length }))] : []),
      element("label", {}, words.text("strength"), strength),
      element("div", { className: "hyperdream-choices" }, keep, leave),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.attempt(async () => {
        // What was left as it was is not sent, and stays in the file as it is.
        const changed = {};
        if (notes.value !== before.notes) changed.notes = notes.value;
        if (strength.valueAsNumber !== before.strength) changed.strength = strength.valueAsNumber;
        if (Object.keys(changed).length) await annotateIdentity(identity.name, changed, words);
        await this.panel.changed();
      });
    });
    // The host takes keys as its shortcuts, and a card that can be dragged lets no text be selected.
    form.addEventListener("keydown", (event) => event.stopPropagation());
    this.root.draggable = false;
    this.root.replaceChildren(form);
    notes.focus();
  }
}
