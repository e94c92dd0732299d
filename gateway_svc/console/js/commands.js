// Shows which commands fit what is being typed after a slash. What there is, the gateway knows.
import { api } from "./api.js";
import { el } from "./dom.js";

const MOST = 8;

export class Completion {
  constructor(textbox, list) {
    this.textbox = textbox;
    this.list = list;
    this.forms = null;
    this.fitting = [];
    this.chosen = 0;
  }

  async load() {
    if (this.forms) return;
    this.forms = []; // asked once; a gateway that cannot say leaves the box as it is
    const answer = await api.commands().catch(() => null);
    const forms = answer?.data?.forms || [];
    const aliases = forms.flatMap((form) => (form.aliases || []).map((alias) => ({
      ...form, name: alias, usage: form.usage.replace(`/${form.name}`, `/${alias}`),
    })));
    this.forms = [...forms, ...aliases];
    this.show();
  }

  show() {
    const typed = this.textbox.value;
    if (!/^\/[a-z]*( [a-z-]*)?$/i.test(typed)) return this.hide();
    this.load();
    const begin = typed.slice(1).toLowerCase();
    this.fitting = this.forms.filter((form) => form.name.startsWith(begin) && form.name !== begin.trim()).slice(0, MOST);
    this.chosen = Math.min(this.chosen, Math.max(0, this.fitting.length - 1));
    this.list.hidden = !this.fitting.length;
    this.list.replaceChildren(...this.fitting.map((form, index) => el("li", {},
      el("button", { type: "button", role: "option", "aria-selected": String(index === this.chosen), onclick: () => this.take(form) },
        el("code", { text: form.usage }), el("span", { text: form.summary })))));
  }

  hide() {
    this.fitting = [];
    this.chosen = 0;
    this.list.hidden = true;
  }

  take(form) {
    this.textbox.value = `/${form.name}${form.usage === `/${form.name}` ? "" : " "}`;
    this.hide();
    this.textbox.focus();
  }

  // Tab takes what is chosen, arrows choose; Enter always sends what was typed. True when used.
  key(event) {
    if (!this.fitting.length) return false;
    if (event.key === "Tab" && !event.shiftKey) this.take(this.fitting[this.chosen]);
    else if (event.key === "Escape") this.hide();
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const step = event.key === "ArrowDown" ? 1 : this.fitting.length - 1;
      this.chosen = (this.chosen + step) % this.fitting.length;
      this.show();
    } else return false;
    event.preventDefault();
    return true;
  }
}
