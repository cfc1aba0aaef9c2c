"use strict";

// Without this script tables are plain and all drawings are shown: everything is readable, nothing moves.

function orderOf(row, column) {
  const cell = row.cells[column];
  return { number: cell.dataset.order === undefined ? null : Number(cell.dataset.order), text: cell.textContent };
}

function compare(a, b, numeric) {
  if (!numeric) return a.text.localeCompare(b.text, "en", { numeric: true });
  return a.number - b.number;
}

function sortBy(table, header, column) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  const numeric = header.classList.contains("n");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => [orderOf(row, column), row]);
  rows.sort(([a], [b]) => {
    // What has no number stays behind those that have one, in both directions.
    if (numeric && (a.number === null || b.number === null)) return (a.number === null) - (b.number === null);
    return descending ? compare(b, a, numeric) : compare(a, b, numeric);
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...rows.map(([, row]) => row));
}

function prepareTable(data) {
  const table = data.querySelector("table");
  if (table.tBodies[0].rows.length < 8) return;
  Array.from(table.tHead.rows[0].cells).forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sortBy(table, header, column));
    header.replaceChildren(button);
  });
  const tools = data.querySelector(".tools");
  const found = tools.querySelector(".found");
  const rows = Array.from(table.tBodies[0].rows, (row) => [row.textContent.toLowerCase(), row]);
  const search = () => {
    const words = tools.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [text, row] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    found.textContent = `${shown} of ${rows.length} rows`;
  };
  tools.querySelector("input").addEventListener("input", search);
  tools.hidden = false;
  search();
}

function prepareChoice(choice) {
  const select = choice.querySelector("select");
  const options = choice.querySelectorAll(":scope > .option");
  const show = () => options.forEach((option, number) => { option.hidden = number !== Number(select.value); });
  choice.classList.add("chosen");
  choice.querySelector(".tools").hidden = false;
  select.addEventListener("change", show);
  show();
}

document.querySelectorAll(".data").forEach(prepareTable);
document.querySelectorAll(".choice").forEach(prepareChoice);
