/** Identities on the canvas: dropped as a new node, on a node that takes one, or put into the middle of the view. */

import { app } from "../../scripts/app.js";

const LOAD = "HyperDreamLoadIdentity";
const APPLY = "HyperDreamApplyIdentity";
const IDENTITY = "HYPERDREAM_IDENTITY";
const GAP = 60;

/** Kind of data a dragged card carries; other drops are left to the host. */
export const DRAG_TYPE = "application/x-hyperdream-identity";

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

function setWidget(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget) return false;
  // The list was made when the page was loaded, and the identity may be newer.
  const values = widget.options?.values;
  if (Array.isArray(values) && typeof value === "string" && !values.includes(value)) values.push(value);
  widget.value = value;
  widget.callback?.(value);
  return true;
}

function createNode(type, position, words) {
  const node = window.LiteGraph.createNode(type);
  if (!node) throw new Error(words.text("node_missing", { node: type }));
  node.pos = [...position];
  app.canvas.graph.add(node);
  return node;
}

function takesIdentity(node) {
  return node?.inputs?.some((input) => input.type === IDENTITY) ?? false;
}

function join(from, to, strength) {
  from.connectByType(0, to, IDENTITY);
  setWidget(to, "strength", strength);
}

/**
 * Put an identity on the canvas.
 *
 * On a Load Identity node it is chosen there; on a node that takes an identity it is loaded beside it and connected, at
 * the identity's strength; elsewhere a Load Identity node is made, and with `andApply` one that applies it.
 */
export function placeIdentity(identity, position, andApply, words) {
  const target = app.canvas.graph.getNodeOnPos(...position);
  if (target?.type === LOAD) {
    setWidget(target, "identity", identity.name);
    app.canvas.selectNode(target);
  } else {
    const load = createNode(LOAD, position, words);
    setWidget(load, "identity", identity.name);
    if (takesIdentity(target)) {
      load.pos = [target.pos[0] - load.size[0] - GAP, target.pos[1]];
      join(load, target, identity.strength);
    } else if (andApply) {
      const apply = createNode(APPLY, [position[0] + load.size[0] + GAP, position[1]], words);
      join(load, apply, identity.strength);
    }
    app.canvas.selectNode(load);
  }
  app.canvas.setDirty(true, true);
}

/** The middle of what the canvas shows, in the graph's units. */
export function middleOfView() {
  const [x, y, width, height] = app.canvas.ds.visible_area ?? app.canvas.visible_area;
  return [x + width / 2 - 150, y + height / 2 - 50];
}

function isOverCanvas(event) {
  const box = app.canvas.canvas.getBoundingClientRect();
  const isInside = event.clientX >= box.left && event.clientX < box.right && event.clientY >= box.top;
  // The sidebar and dialogs lie over the canvas, and a drop on them is none on it.
  return isInside && event.clientY < box.bottom && !event.target.closest?.(".hyperdream-library, .p-dialog, .side-bar-panel");
}

function isOurs(event) {
  return event.dataTransfer?.types.includes(DRAG_TYPE) && isOverCanvas(event);
}

/** Take drops of cards anywhere on the canvas, before the host looks for files in them. */
export function acceptDrops(words) {
  const allow = (event) => {
    if (!isOurs(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  };
  document.addEventListener("dragenter", allow, true);
  document.addEventListener("dragover", allow, true);
  document.addEventListener(
    "drop",
    (event) => {
      if (!isOurs(event)) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      try {
        const identity = JSON.parse(event.dataTransfer.getData(DRAG_TYPE));
        placeIdentity(identity, app.canvas.convertEventToCanvasOffset(event), event.shiftKey, words);
      } catch (error) {
        app.extensionManager.toast.add({ severity: "error", summary: words.text("title"), detail: error.message });
      }
    },
    true,
  );
}

/** Let every Load Identity node of the open graph follow a new name. */
export function renameInGraph(oldName, newName) {
  for (const node of app.canvas.graph?.nodes ?? []) {
    if (node.type === LOAD && widgetOf(node, "identity")?.value === oldName) setWidget(node, "identity", newName);
  }
}
