"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PER_PAGE = 20;
  const byId = (id) => document.getElementById(id);
  const control = { find: byId("find"), outcome: byId("outcome"), cut: byId("cut"), tag: byId("tag"), sort: byId("sort") };
  const list = byId("queries");
  let page = 0;

  const make = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = (value) => value.toLocaleString("en-US");

  const picture = (index, alt, caption, hit) => {
    const figure = make("figure", hit ? "hit" : "");
    const frame = make("div", "frame");
    const image = data.images[index];
    if (image.src) {
      const node = make("img");
      node.src = image.src;
      node.alt = alt;
      frame.append(node);
    } else {
      frame.textContent = "no image file";
    }
    figure.append(frame);
    if (caption) {
      const line = make("figcaption", "", caption);
      line.title = image.id;
      figure.append(line);
    }
    figure.title = image.id;
    return figure;
  };

  const ask = (query) => {
    const part = make("div", "ask");
    part.append(make("p", "texts", query.texts.map((text) => `“${text}”`).join("  and  ")));
    const pair = make("div", "pair");
    pair.append(picture(query.reference, `reference ${data.images[query.reference].id}`, "reference"));
    if (query.targets.length) {
      const first = query.targets[0];
      const caption = query.targets.length > 1 ? `target, 1 of ${query.targets.length}` : "target";
      pair.append(picture(first, `target ${data.images[first].id}`, caption));
    }
    part.append(pair);
    const others = query.targets.slice(1);
    if (others.length) {
      const more = make("div", "more");
      more.append(make("p", "part", "also right"));
      const thumbs = make("div", "thumbs");
      for (const index of others) thumbs.append(picture(index, `also right: ${data.images[index].id}`));
      more.append(thumbs);
      part.append(more);
    }
    return part;
  };

  const ranks = (query, cut) => {
    const line = make("p", "ranks");
    if (!query.rank) {
      line.append(make("span", "", "labels are hidden"));
      return line;
    }
    const hit = query.rank <= cut;
    const own = make("b", hit ? "hit" : "miss", `${hit ? "✓" : "✗"} target at rank ${number(query.rank)}`);
    if (query.tied) own.title = "shares its score with another image; ranked by the tie rule";
    line.append(own);
    for (const [name, rank] of Object.entries(query.beside)) line.append(make("span", "", `${name} ${number(rank)}`));
    return line;
  };

  const answer = (query, cut) => {
    const part = make("div", "answer");
    part.append(ranks(query, cut));
    const thumbs = make("ol", "thumbs");
    const right = new Set(query.targets);
    query.top.forEach((index, position) => {
      const hit = right.has(index);
      const reference = index === query.reference;
      const caption = `${hit ? "✓ " : ""}${position + 1}${reference ? " · reference" : ""}`;
      const alt = `rank ${position + 1}${hit ? ", a target" : ""}${reference ? ", the reference" : ""}: ${data.images[index].id}`;
      const item = make("li");
      item.append(picture(index, alt, caption, hit));
      thumbs.append(item);
    });
    part.append(thumbs);
    return part;
  };

  const card = (query, cut) => {
    const article = make("article", "query");
    const head = make("h3", "", `query ${query.id}`);
    for (const tag of query.tags) head.append(make("span", "tag", tag));
    article.append(head, ask(query), answer(query, cut));
    return article;
  };

  const words = (query) => [query.id, ...query.texts, ...query.tags, data.images[query.reference].id].join(" ").toLowerCase();
  const gain = (query) => Math.min(...Object.values(query.beside), Infinity) / query.rank;
  const order = {
    given: () => 0,
    worst: (a, b) => b.rank - a.rank,
    best: (a, b) => a.rank - b.rank,
    gain: (a, b) => gain(b) - gain(a),
    loss: (a, b) => gain(a) - gain(b),
  };

  const chosen = () => {
    const wanted = control.find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const cut = Number(control.cut.value);
    return data.queries
      .filter((query) => !control.tag.value || query.tags.includes(control.tag.value))
      .filter((query) => control.outcome.value === "all" || (query.rank <= cut) === (control.outcome.value === "hit"))
      .filter((query) => { const text = words(query); return wanted.every((word) => text.includes(word)); })
      .sort(order[control.sort.value]);
  };

  const draw = () => {
    const queries = chosen();
    const pages = Math.max(1, Math.ceil(queries.length / PER_PAGE));
    page = Math.min(page, pages - 1);
    const cut = Number(control.cut.value);
    const hits = queries.filter((query) => query.rank && query.rank <= cut).length;
    const share = data.labelled && queries.length ? `, ${number(hits)} with a target in the top ${cut}` : "";
    byId("shown").textContent = `${number(queries.length)} of ${number(data.queries.length)} queries${share}`;
    const from = page * PER_PAGE;
    list.replaceChildren(...queries.slice(from, from + PER_PAGE).map((query) => card(query, cut)));
    if (!queries.length) list.append(make("p", "empty", "No query matches. Loosen the filters."));
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("back").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
  };

  const turn = (step) => {
    page += step;
    draw();
    byId("shown").scrollIntoView();
    byId("shown").focus({ preventScroll: true });
  };
  byId("back").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  for (const node of Object.values(control)) node.addEventListener("input", () => { page = 0; draw(); });
  draw();
})();
