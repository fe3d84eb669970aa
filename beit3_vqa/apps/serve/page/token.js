// Asks the server, with the token where the address had one behind its #, a part that browsers keep to themselves.

export let token = new URLSearchParams(location.hash.slice(1)).get("token");
if (!/^[\w.~-]+$/.test(token ?? "")) token = null; // it comes to stand in a command that is meant to be copied
try {
  if (token) {
    sessionStorage.setItem("token", token);
    history.replaceState(null, "", location.pathname + location.search); // not to be read over a shoulder
  }
  token = sessionStorage.getItem("token");
} catch {
  // A browser that stores nothing: the token stays in the address.
}
addEventListener("hashchange", () => location.reload()); // an address that differs in the token alone was opened

export function send(address, options = {}) {
  return fetch(address, { ...options, headers: token ? { Authorization: `Bearer ${token}` } : {} });
}
