// The token of the gateway: asked for when a call needs one, kept for this tab, sent as a header.
import { byId } from "./dom.js";

const KEPT = "conveyor.token";
let asking = null;
let signedIn = () => {};

const kept = () => sessionStorage.getItem(KEPT) || "";
export const hasToken = () => Boolean(kept());

// Calls `then` each time somebody gave a token.
export function onSignIn(then) { signedIn = then; }

// As `fetch`, with the token. A call that needs another one waits for it, and is then made again.
export async function fetchAs(path, options = {}) {
  for (;;) {
    const token = kept();
    const headers = token ? { ...options.headers, Authorization: `Bearer ${token}` } : options.headers;
    const response = await fetch(path, { ...options, headers });
    byId("sign-out").hidden = !token;
    if (response.status !== 401) return response;
    await response.body?.cancel();
    // Another call may have been refused before, and its token was already replaced.
    if (token === kept()) await another(token);
  }
}

// All calls that were refused wait for the same answer.
function another(refused) {
  asking ||= ask(refused).finally(() => { asking = null; });
  return asking;
}

function ask(refused) {
  const dialog = byId("sign-in");
  const field = byId("sign-in-token");
  byId("sign-in-problem").hidden = !refused;
  field.value = "";
  let given = false;
  const show = () => { if (!dialog.open) dialog.showModal(); };
  show();
  return new Promise((done) => {
    byId("sign-in-form").onsubmit = (event) => {
      event.preventDefault();
      const token = field.value.trim();
      // What no header can hold is no token.
      if (!/^[\x21-\x7e]+$/.test(token)) {
        byId("sign-in-problem").hidden = false;
        return;
      }
      sessionStorage.setItem(KEPT, token);
      field.value = "";
      given = true;
      dialog.close();
      done();
      signedIn();
    };
    // Without a token there is nothing to see behind it. One that was given is tried first: to ask
    // before it is refused would empty the field while the next one is typed.
    dialog.onclose = () => { if (!given) show(); };
  });
}

byId("sign-out").addEventListener("click", () => {
  sessionStorage.removeItem(KEPT);
  location.assign(location.pathname); // nothing that was shown stays
});
