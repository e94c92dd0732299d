// A small part of Markdown as document nodes. Everything is text or an element made here, so what a
// model or a web page says can never become markup or script.
import { el } from "./dom.js";

const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(\*[^*\s][^*\n]*\*|\b_[^_\s][^_\n]*_\b)|(\[[^\]\n]+\]\(https?:\/\/[^\s)]+\))|(https?:\/\/[^\s<>"')\]]+)/g;

function link(address, text) {
  return el("a", { href: address, target: "_blank", rel: "noopener noreferrer", text });
}

export function inline(text) {
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index > from) nodes.push(text.slice(from, found.index));
    const [all, code, bold, slanted, named, bare] = found;
    if (code) nodes.push(el("code", { text: code.slice(1, -1) }));
    else if (bold) nodes.push(el("strong", {}, ...inline(bold.slice(2, -2))));
    else if (slanted) nodes.push(el("em", { text: slanted.slice(1, -1) }));
    else if (named) {
      const split = named.indexOf("](");
      nodes.push(link(named.slice(split + 2, -1), named.slice(1, split)));
    } else nodes.push(link(bare, bare));
    from = found.index + all.length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

function withBreaks(lines) {
  return lines.flatMap((line, index) => (index ? [el("br"), ...inline(line)] : inline(line)));
}

export function markdown(text) {
  const blocks = [];
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  let paragraph = [];
  let list = null;
  const flush = () => {
    if (paragraph.length) blocks.push(el("p", {}, ...withBreaks(paragraph)));
    paragraph = [];
    list = null;
  };
  for (let index = 0; index < lines.length; index += 1) {
    const line = lines[index];
    const item = /^\s*(?:([-*•])|(\d{1,3})[.)])\s+(.*)$/.exec(line);
    const head = /^#{1,4}\s+(.*)$/.exec(line);
    if (line.startsWith("```")) {
      flush();
      const code = [];
      for (index += 1; index < lines.length && !lines[index].startsWith("```"); index += 1) {
        code.push(lines[index]);
      }
      blocks.push(el("pre", {}, el("code", { text: code.join("\n") })));
    } else if (item) {
      const tag = item[2] ? "ol" : "ul";
      if (!list || list.localName !== tag) {
        flush();
        list = el(tag, item[2] && item[2] !== "1" ? { start: item[2] } : {});
        blocks.push(list);
      }
      list.append(el("li", {}, ...inline(item[3])));
    } else if (head) {
      flush();
      blocks.push(el("p", { class: "head" }, ...inline(head[1])));
    } else if (!line.trim()) {
      flush();
    } else {
      if (list) flush();
      paragraph.push(line);
    }
  }
  flush();
  return blocks;
}
