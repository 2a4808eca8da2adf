"use strict";
// Tables work without this script; it lets their headers sort, and opens everything for the printer.

function sort(table, header) {
  const column = Number(header.dataset.column);
  const numeric = header.dataset.sort === "number";
  const first = numeric ? "descending" : "ascending";
  const second = numeric ? "ascending" : "descending";
  const state = header.getAttribute("aria-sort");
  const next = state === first ? second : state === second ? "none" : first;
  for (const other of table.querySelectorAll("th[data-sort]")) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", next);

  const sign = next === "descending" ? -1 : 1;
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    if (next === "none") return a.dataset.order - b.dataset.order;
    const [x, y] = [key(a), key(b)];
    // What is missing stays at the end in both directions.
    if (x === "" || y === "") return (x === "") - (y === "") || a.dataset.order - b.dataset.order;
    const difference = numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
    return sign * difference || a.dataset.order - b.dataset.order;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tBodies[0].rows].forEach((row, index) => (row.dataset.order = index));
  for (const header of table.querySelectorAll("th[data-sort]")) {
    // Beside the words and not around them: headers that are repeated on paper lose what is in a button.
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Sort by ${header.textContent.trim()}`);
    header.append(" ", button);
    header.setAttribute("aria-sort", "none");
    header.addEventListener("click", () => sort(table, header));
  }
}

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const one of folded) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of folded) one.open = false;
});
