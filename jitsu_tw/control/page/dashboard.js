// The dashboard: reads the control endpoint, listens to its events, and shows both. Everything that changes asks for one
// rendering; what is on the page is changed where it is, so that what is under the pointer stays there.

import * as details from "./details.js";
import * as panels from "./panels.js";
import * as place from "./place.js";
import * as server from "./server.js";
import * as table from "./table.js";

let due = false;

function render() {
  if (due) return;
  due = true;
  const now = () => {
    due = false;
    table.render();
    panels.render();
    details.render();
  };
  if (document.hidden) setTimeout(now, 1000);
  else requestAnimationFrame(now);
}

table.begin();
details.begin();
place.begin(render);
server.begin(name => { render(); details.changed(name); }, table.shown);
setInterval(() => { if (!document.hidden) { table.tick(); panels.tick(); } }, 1000);
setInterval(() => { if (!document.hidden && [...server.activations.values()].some(one => one.outcome === "running")) panels.tick(); }, 100);
