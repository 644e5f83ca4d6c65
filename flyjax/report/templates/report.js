(function () {
  "use strict";
  function all(selector, within) { return Array.from((within || document).querySelectorAll(selector)); }

  // --- sort the table of nodes; what has no number goes last either way ---
  var table = document.getElementById("table-of-nodes");
  if (table) {
    var body = table.tBodies[0];
    all("thead button", table).forEach(function (button) {
      button.addEventListener("click", function () {
        var head = button.parentElement, k = head.cellIndex;
        var up = head.getAttribute("aria-sort") === (head.dataset.first === "desc" ? "descending" : null)
          || (head.dataset.first !== "desc" && head.getAttribute("aria-sort") !== "ascending");
        all("thead th", table).forEach(function (th) { th.removeAttribute("aria-sort"); });
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

  // --- what is known of a node: the rows of its card, by name and by short name ---
  var cards = all(".card"), known = {};
  cards.forEach(function (card) {
    var values = {};
    all("tr[data-name]", card).forEach(function (row) {
      values[row.dataset.name] = values[row.cells[0].textContent] = row.dataset.value;
    });
    known[card.dataset.node] = { values: values, text: (card.querySelector("summary").textContent + values.class).toLowerCase() };
  });

  // --- filter nodes: words of their summary, and conditions such as batch_size>=2 ---
  var filter = document.getElementById("filter");
  var condition = /^([\w.]+)(<=|>=|=|<|>)(.*)$/;
  function fits(node, term) {
    var parts = condition.exec(term);
    if (!parts) return node.text.indexOf(term.toLowerCase()) >= 0;
    var value = node.values[parts[1]], a = Number(value), b = Number(parts[3]);
    if (value === undefined || value === "") return false;
    if (parts[3] === "" || isNaN(a) || isNaN(b)) return parts[2] === "=" && value === parts[3];
    return { "=": a === b, "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b }[parts[2]];
  }
  function apply() {
    var terms = filter.querySelector("input").value.replace(/\s*([<>]=?|=)\s*/g, "$1").split(/\s+/).filter(Boolean), n = 0;
    cards.forEach(function (card) {
      var id = card.dataset.node, fit = terms.every(function (term) { return fits(known[id], term); });
      known[id].fit = fit;
      n += fit;
    });
    all("[data-node]").forEach(function (e) {
      var out = known[e.dataset.node] && !known[e.dataset.node].fit;
      if (e.tagName === "TR" || e.tagName === "DETAILS") e.hidden = out; else e.classList.toggle("dim", out);
    });
    var unknown = terms.map(function (term) { return (condition.exec(term) || [])[1]; }).find(function (name) {
      return name && !Object.values(known).some(function (node) { return name in node.values; });
    });
    filter.querySelector("output").textContent = unknown ? "no metric or setting " + unknown
      : terms.length ? n + " of " + cards.length + " nodes" : "";
  }
  if (filter) {
    filter.hidden = false;
    filter.addEventListener("input", apply);
    filter.querySelector("input").value = document.body.dataset.version && sessionStorage.getItem("filter") || "";
    apply();
  }

  // --- a node in a dialog, alone or beside another ---
  var viewer = document.getElementById("viewer"), current = "";
  if (viewer) {
    var select = viewer.querySelector("select"), place = viewer.querySelector(".shown");
    cards.forEach(function (card) {
      var option = document.createElement("option");
      option.value = card.dataset.node;
      var run = card.parentElement.dataset.run;
      option.textContent = (run ? run + ": " : "") + card.querySelector("summary").textContent.trim().replace(/\s+/g, " ").slice(0, 60);
      select.appendChild(option);
    });
    var show = function (id) {
      current = id;
      place.replaceChildren();
      [id, select.value].filter(Boolean).forEach(function (key) {
        var original = cards.find(function (card) { return card.dataset.node === key; }), column = document.createElement("article");
        var title = document.createElement("h3");
        title.append.apply(title, Array.from(original.querySelector("summary").cloneNode(true).childNodes));
        column.append(title, original.querySelector("div").cloneNode(true));
        place.appendChild(column);
      });
      var names = {};
      all("tr[data-name]", place).forEach(function (row) { (names[row.dataset.name] = names[row.dataset.name] || []).push(row); });
      Object.values(names).forEach(function (rows) {
        var differ = rows.length > 1 && rows[0].dataset.value !== rows[1].dataset.value;
        rows.forEach(function (row) { row.classList.toggle("differs", differ); });
        if (rows.length > 1) rows[0].appendChild(rows[1].cells[1].cloneNode(true)).classList.add("beside");
      });
      viewer.classList.toggle("both", place.children.length > 1);
      if (!viewer.open) viewer.showModal();
      place.scrollTop = 0;
    };
    var step = function (by) {
      var ids = cards.filter(function (c) { return !c.hidden; }).map(function (c) { return c.dataset.node; });
      if (ids.length) show(ids[(ids.indexOf(current) + by + ids.length) % ids.length]);
    };
    select.addEventListener("change", function () { show(current); });
    viewer.addEventListener("click", function (event) {
      if (event.target === viewer || event.target.value === "close") viewer.close();
      if (event.target.value === "1" || event.target.value === "-1") step(Number(event.target.value));
    });
    viewer.addEventListener("keydown", function (event) {
      if (event.target.tagName === "SELECT") return;
      if (event.key === "ArrowRight") step(1);
      if (event.key === "ArrowLeft") step(-1);
    });
    document.addEventListener("click", function (event) {
      var link = event.target.closest("a[href*='card-']"), id = link && link.getAttribute("href").slice(1).replace("card-", "");
      if (id && known[id]) { event.preventDefault(); select.value = ""; show(id); }
    });
  }

  // --- copy the text below a button ---
  all(".copy").forEach(function (button) { button.hidden = false; });
  document.addEventListener("click", function (event) {
    if (!event.target.classList.contains("copy")) return;
    var text = event.target.nextElementSibling, range = document.createRange();
    range.selectNodeContents(text);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    event.target.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
  });

  // --- a link into something folded unfolds it ---
  function unfold() {
    var target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (var e = target; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", unfold);
  unfold();

  // --- served: load the page again when the run has moved on, but not while a node is shown ---
  var version = document.body.dataset.version;
  if (version) setInterval(function () {
    fetch("version").then(function (answer) { return answer.text(); }).then(function (now) {
      document.body.classList.remove("offline");
      if (now === version || (viewer && viewer.open)) return;
      if (filter) sessionStorage.setItem("filter", filter.querySelector("input").value);
      location.reload();
    }, function () { document.body.classList.add("offline"); });
  }, 5000);
})();
