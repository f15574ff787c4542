"""How the page looks, and the little that its browser does by itself.

Knows: colours, widths and fonts of the system; nothing is fetched from elsewhere. Does not know what is on the page.
"""

from __future__ import annotations

from gradio.themes import Base, Soft

from utils.page.markup import JOINER

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Noto Sans CJK SC", "PingFang SC") + (
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "sans-serif",
)
FIXED_FONTS = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

CSS = """
.gradio-container { max-width: 1320px !important; width: 100%; margin: 0 auto !important; padding: 12px !important; }
#head { align-items: center; flex-wrap: nowrap; }
#head h1 { margin: 0; }
#head > * { flex: 1 1 auto; min-width: 0; }
#language { flex: 0 0 auto; width: auto; }
#chat { height: max(260px, calc(100vh - 400px)) !important; }
#head > * { min-width: 0 !important; }
.heading p { font-weight: 600; }
.wide tr, .wide tbody, .wide thead { border: 0 !important; }
.status { min-height: 1.6em; color: var(--body-text-color-subdued); }
.wide { overflow-x: auto; }
.wide table { border: 0 !important; border-collapse: collapse; font-size: 0.92em; }
.wide th, .wide td { text-align: left; vertical-align: top; padding: 3px 10px; overflow-wrap: break-word;
  word-break: normal; border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.exact { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7; font-family: var(--font-mono);
  font-size: 0.92em; max-height: 60vh; overflow-y: auto; padding: 10px; border-radius: 8px;
  border: 1px solid var(--border-color-primary); }
.exact mark { background: #fde68a; color: #422006; border-radius: 3px; }
.exact kbd { border: 1px solid currentColor; border-radius: 4px; padding: 0 3px; font: inherit; }
.answer { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 12px; min-height: 5em;
  overflow-wrap: anywhere; }
.answer .answer { border: 0; padding: 0; min-height: 0; }
.picture img { max-width: 100%; height: auto; background: white; }
@media (max-width: 640px) {
  #language label { padding: 4px 8px; }
  .gradio-container { padding: 6px !important; }
  #head p { display: none; }
  #tabs .tab-container button { padding: 0 9px; }
  #chat { height: max(220px, calc(100vh - 380px)) !important; }
}
"""

HEAD = f"""
<style>
@media (max-width: 640px) {{ .gradio-container > .main {{ padding: 4px !important; }} }}
</style>
<script>
(() => {{
  const plain = (text) => text.replace(/([<!]){JOINER}/g, "$1");
  if (navigator.clipboard) {{
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = (text) => write(plain(text));
  }}
  document.addEventListener("copy", (event) => {{
    const text = String(document.getSelection());
    if (text.includes("{JOINER}") && event.clipboardData) {{
      event.clipboardData.setData("text/plain", plain(text));
      event.preventDefault();
    }}
  }});
}})();
</script>
"""
"""Margins that a phone has no room for, outside of what Gradio lets `CSS` reach; and what is copied is what was written
(`utils.page.markup`)."""


def theme() -> Base:
    """Gradio's own, in the system's fonts."""
    made = Soft(primary_hue="emerald", neutral_hue="slate", font=FONTS, font_mono=FIXED_FONTS)
    return made.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        input_border_width="1px",
        input_border_width_dark="1px",
        input_border_color="*border_color_primary",
        input_border_color_dark="*border_color_primary",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_padding="0",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
    )
