// A long table gets a field that shows only the rows with a word.
for (const table of document.querySelectorAll(".md-content table")) {
  const rows = [...table.tBodies[0]?.rows ?? []];
  if (rows.length < 40) continue;
  const field = document.createElement("input");
  field.className = "rows";
  field.type = "search";
  field.placeholder = `Show only rows that contain … (${rows.length} rows)`;
  field.addEventListener("input", () => {
    const word = field.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(word);
  });
  table.before(field);
}
