(function () {
  "use strict";
  // Sort the table of nodes; what has no number goes last either way.
  var table = document.getElementById("table-of-nodes");
  if (table) {
    var body = table.tBodies[0];
    table.querySelectorAll("thead button").forEach(function (button) {
      button.addEventListener("click", function () {
        var head = button.parentElement, k = head.cellIndex;
        var up = head.getAttribute("aria-sort") === (head.dataset.first === "desc" ? "descending" : null)
          || (head.dataset.first !== "desc" && head.getAttribute("aria-sort") !== "ascending");
        table.querySelectorAll("thead th").forEach(function (th) { th.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        Array.from(body.rows).map(function (row) {
          var text = row.cells[k].dataset.value, number = text === "" ? NaN : Number(text);
          return { row: row, text: text, number: number };
        }).sort(function (a, b) {
          if ((a.text === "") !== (b.text === "")) return a.text === "" ? 1 : -1;
          var an = isNaN(a.number), bn = isNaN(b.number);
          var order = an && bn ? a.text.localeCompare(b.text) : an ? 1 : bn ? -1 : a.number - b.number;
          return up ? order : -order;
        }).forEach(function (entry) { entry.row.classList.remove("opens"); body.appendChild(entry.row); });
      });
    });
  }
  // Show one block of the landscape at a time.
  var filter = document.querySelector(".filter");
  if (filter) {
    filter.hidden = false;
    filter.addEventListener("click", function (event) {
      var button = event.target.closest("button");
      if (!button) return;
      filter.querySelectorAll("button").forEach(function (b) { b.setAttribute("aria-pressed", String(b === button)); });
      document.querySelectorAll(".panels a").forEach(function (a) {
        a.classList.toggle("dim", button.value !== "" && a.dataset.block !== button.value);
      });
    });
  }
  // A link into something folded unfolds it.
  function unfold() {
    var target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (var e = target; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", unfold);
  unfold();
})();
