// One article at a time; without JavaScript all of them stand one below the other.
const articles = [...document.querySelectorAll(".article")];
const links = [...document.querySelectorAll("nav a")];
const menu = document.getElementById("menu");
const narrow = matchMedia("(max-width: 60rem)");

// The sections of the open article, below its link in the menu.
function listSections(open, link) {
  document.querySelectorAll("nav .sections").forEach(list => list.remove());
  const list = document.createElement("ol");
  list.className = "sections";
  for (const heading of open.querySelectorAll("h2")) {
    const entry = document.createElement("a");
    entry.href = "#" + heading.id;
    entry.textContent = heading.firstChild.textContent.trim();
    list.append(document.createElement("li"));
    list.lastChild.append(entry);
  }
  if (list.children.length && link) link.after(list);
}

function show() {
  const place = document.getElementById(decodeURIComponent(location.hash.slice(1).split("?")[0])) || articles[0];
  const open = place.closest(".article") || articles[0];
  const number = articles.indexOf(open);
  articles.forEach(article => article.classList.toggle("open", article === open));
  links.forEach(link => link.hash === "#" + open.id ? link.setAttribute("aria-current", "page")
                                                     : link.removeAttribute("aria-current"));
  listSections(open, links.find(link => link.hash === "#" + open.id));
  document.title = open.querySelector("h1").textContent + " · Alignment from scratch";
  for (const [id, other] of [["previous", articles[number - 1]], ["next", articles[number + 1]]]) {
    const link = document.getElementById(id);
    link.hidden = !other;
    if (other) {
      link.href = "#" + other.id;
      link.textContent = (id === "previous" ? "← " : "") + other.querySelector("h1").textContent + (id === "next" ? " →" : "");
    }
  }
  if (narrow.matches) menu.open = false;
  place === open ? scrollTo(0, 0) : place.scrollIntoView();
}

// A figure opens large above the page; Escape or a click closes it.
const large = document.getElementById("large");
document.querySelectorAll(".figure").forEach(figure => figure.addEventListener("click", event => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;  // the file, in a tab or window of its own
  event.preventDefault();
  large.lastElementChild.replaceChildren(figure.querySelector("img").cloneNode());
  large.showModal();
}));
large.addEventListener("click", () => large.close());

// What is wider than its place can be focused, so that the arrow keys scroll it in every browser.
const sideways = new ResizeObserver(entries => {
  for (const { target } of entries)
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
});
document.querySelectorAll("pre, .wide, .math").forEach(block => sideways.observe(block));

document.documentElement.classList.add("reading");
narrow.addEventListener("change", () => { menu.open = !narrow.matches; });
addEventListener("hashchange", show);
show();
