// Where the page is, as its address has it behind the #: filter, q (the search), template, open (the templates whose VMs
// are shown), sort, page, vm. All are texts.

const KEYS = ["filter", "q", "template", "open", "sort", "page", "vm"];

export const place = {};
let moved = () => {};

function read() {
  const said = new URLSearchParams(location.hash.slice(1));
  for (const key of KEYS) place[key] = said.get(key) || "";
}

// Go elsewhere; the browser's way back leads here, unless the step is too small for that.
export function go(change, small = false) {
  Object.assign(place, change);
  const said = new URLSearchParams();
  for (const key of KEYS) if (place[key]) said.set(key, place[key]);
  const hash = said.toString();
  if (hash !== location.hash.slice(1)) {
    history[small ? "replaceState" : "pushState"](null, "", hash ? `#${hash}` : location.pathname + location.search);
  }
  moved();
}

export function begin(onMove) {
  moved = onMove;
  read();
  const back = () => { read(); moved(); };
  addEventListener("popstate", back);
  addEventListener("hashchange", back);
}
