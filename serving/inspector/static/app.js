// What every page does: tokens for requests that change something, messages, light and dark.
"use strict";

const token = document.querySelector('meta[name="csrf-token"]')?.content ?? "";
const toast = document.getElementById("toast");
let hiding = 0;

function say(text) {
  clearTimeout(hiding);
  toast.textContent = text;
  hiding = setTimeout(() => { toast.textContent = ""; }, 8000);
}

document.addEventListener("htmx:configRequest", (event) => { event.detail.headers["X-CSRF-Token"] = token; });
document.addEventListener("htmx:responseError", (event) => { say(event.detail.xhr.responseText || "That did not work."); });
document.addEventListener("htmx:sendError", () => { say("The page's server does not answer. Nothing was recorded."); });
document.addEventListener("htmx:timeout", () => { say("The page's server does not answer. Nothing was recorded."); });

document.getElementById("theme")?.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : root.dataset.theme === "dark";
  root.dataset.theme = dark ? "light" : "dark";
  document.cookie = `defectlens_theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
});
document.getElementById("print")?.addEventListener("click", () => window.print());

// A download cannot be answered into a part of the page, so it is fetched with the token and then handed over.
document.getElementById("export")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  try {
    const reply = await fetch(event.target.action, { method: "POST", body: new FormData(event.target), headers: { "X-CSRF-Token": token } });
    if (!reply.ok) { say(await reply.text()); return; }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await reply.blob());
    link.download = /filename="?([^";]+)/.exec(reply.headers.get("content-disposition") ?? "")?.[1] ?? "feedback.zip";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } finally { button.disabled = false; }
});
