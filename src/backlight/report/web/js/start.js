// Everything is defined: begin.

models.forEach((model, i) => { model.states = page.states[i]; });
switchModels();
switchTabs();
switchMinor();
switchLogarithm();
surveyModels();
listEntries();
all(".word").forEach(walkUnits);
exports();
links();
restore();
keepFitting();
print();
unpackTheRest();

/** A page that is served loads itself again when its folder changes; the address keeps what is shown. */
if (document.body.hasAttribute("data-live")) {
  const version = document.body.dataset.live;
  setInterval(async () => {
    const now = await fetch("version").then((answer) => answer.text()).catch(() => version);
    if (now !== version) location.reload();
  }, 2000);
}
