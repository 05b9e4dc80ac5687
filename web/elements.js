/** Elements made in one call; texts are always set as text, never as markup. */

/** An element with properties and children (elements or texts). */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** One of the host's icons; for the eye only. */
export function icon(name) {
  const made = element("i", { className: `pi ${name}` });
  made.setAttribute("aria-hidden", "true");
  return made;
}

/** A button that shows an icon and says `label`. */
export function button(name, label, action) {
  const made = element("button", { type: "button", className: "hyperdream-icon", title: label }, icon(name));
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}
