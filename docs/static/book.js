// A formula and the lines of code that assign the same name light up together.

document.querySelectorAll(".beside").forEach((beside) => {
  const parts = [...beside.querySelectorAll("[data-names]")];
  const namesOf = (part) => part.dataset.names.split(" ").filter(Boolean);
  const light = (names) =>
    parts.forEach((part) => part.classList.toggle("lit", namesOf(part).some((name) => names.includes(name))));
  parts.forEach((part) => {
    part.addEventListener("mouseenter", () => light(namesOf(part)));
    part.addEventListener("mouseleave", () => light([]));
  });
});

// What scrolls by itself is reached by the keyboard.
document.querySelectorAll("pre, .wide").forEach((part) => {
  if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
});
