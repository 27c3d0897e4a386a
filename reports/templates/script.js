"use strict";
// Heads of sortable tables become buttons; without this script the tables are merely not sortable.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = Array.from(body.rows);
      rows.sort((one, other) => order(key(one.cells[column]), key(other.cells[column]), down));
      body.append(...rows);
    });
  });
}
function key(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = text === "" ? NaN : Number(text.replace(/,/g, ""));
  return Number.isNaN(number) ? text.toLowerCase() : number;
}
// Figures before words in both directions: a cell without a figure is always behind those with one.
function order(one, other, down) {
  if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
  const sign = one < other ? -1 : one > other ? 1 : 0;
  return down ? -sign : sign;
}
