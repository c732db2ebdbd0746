/* Sorts by a column when its head is pressed; without scripts the table is as it was written. */
for (const [column, head] of [...document.querySelectorAll("#runs th")].entries()) {
  if (!head.textContent) continue;
  const button = document.createElement("button");
  button.textContent = head.textContent;
  head.replaceChildren(button);
  let sign = -1;
  button.onclick = () => {
    sign = -sign;
    const body = document.querySelector("#runs tbody");
    const value = row => row.cells[column].textContent.trim();
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      const [p, q] = [Number(x.replaceAll(",", "")), Number(y.replaceAll(",", ""))];
      return sign * (x && y && !isNaN(p) && !isNaN(q) ? p - q : x.localeCompare(y));
    };
    body.append(...[...body.rows].sort(compare));
  };
}
