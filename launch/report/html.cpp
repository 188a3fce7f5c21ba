#include "launch/report/html.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "data/io/sha256.h"
#include "data/tokens/utf8.h"
#include "launch/report/chart.h"

namespace tmamba {

namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";

// XML does not allow U+FFFE and U+FFFF.
bool is_noncharacter(const std::string& text, size_t at) {
  return text.compare(at, 2, "\xEF\xBF") == 0 && static_cast<unsigned char>(text[at + 2]) >= 0xBE;
}

// Bytes of the character at `at`; 0 if it is invalid in UTF-8 or XML.
size_t character_length(const std::string& text, size_t at) {
  const size_t length = utf8_length(text, at);
  return length == 3 && is_noncharacter(text, at) ? 0 : length;
}

constexpr const char* kStyle = R"(
:root{color-scheme:light dark;--page:#f6f7f9;--card:#ffffff;--text:#1d2330;--soft:#5c6675;--rule:#dfe3ea;--good:#0a7d4f;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--page:#12151b;--card:#1b2029;--text:#e7eaf0;--soft:#9aa4b5;--rule:#323a48;--good:#4cc38a;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1240px;margin:0 auto;padding:24px 20px 48px}
h1{font-size:25px;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:18px;margin:30px 0 10px}
h3{font-size:15px;margin:16px 0 6px}
.sub{color:var(--soft);margin:4px 0 18px;overflow-wrap:anywhere}
.grid{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px 14px;min-width:0}
.tiles{display:grid;gap:10px;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));margin:0 0 14px}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:10px 14px}
.tile b{display:block;font-size:21px;font-weight:650;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.tile span{color:var(--soft);font-size:13px}
.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums;min-width:60%}
th,td{padding:4px 12px 4px 0;text-align:right;border-bottom:1px solid var(--rule);vertical-align:top}
th{color:var(--soft);font-weight:600}
th:first-child,td:first-child,td.text,th.text{text-align:left}
td.text{overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.45 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;margin:6px 0 14px;padding:10px 12px;background:var(--page);border:1px solid var(--rule);border-radius:8px}
details{margin:6px 0}
summary{cursor:pointer;color:var(--soft)}
.warn{border-left:4px solid var(--bad);padding-left:12px}
.soft{color:var(--soft);font-size:13px}
footer{margin-top:34px;color:var(--soft);font-size:13px}
.key{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px;background:var(--c)}
@media print{body{background:#fff;font-size:12px}main{max-width:none;padding:0}.card,.tile,svg{break-inside:avoid}}
@media(max-width:520px){main{padding:16px 12px 32px}h1{font-size:21px}.card{padding:10px}}
)";

// Reads the values back from the drawn lines, so that the page does not store them twice.
constexpr const char* kScript = R"(
document.querySelectorAll('svg[data-x]').forEach(function(svg){
var n='http://www.w3.org/2000/svg',d=svg.dataset,X=d.x.split(' ').map(Number),Y=d.y.split(' ').map(Number);
function value(A,p){var f=(p-A[2])/(A[3]-A[2]);return A[4]?A[0]*Math.pow(A[1]/A[0],f):A[0]+(A[1]-A[0])*f}
function text(v){var a=Math.abs(v);return a!==0&&(a<1e-3||a>=1e7)?v.toExponential(3):a>=1000?String(Math.round(v)):String(+v.toPrecision(4))}
var lines=[].map.call(svg.querySelectorAll('path[data-n]'),function(p){return{name:p.dataset.n,points:(p.getAttribute('d').match(/-?[\d.]+,-?[\d.]+/g)||[]).map(function(q){return q.split(',').map(Number)})}});
var g=document.createElementNS(n,'g'),rule=document.createElementNS(n,'line'),box=document.createElementNS(n,'rect'),out=document.createElementNS(n,'text');
g.setAttribute('class','tip');g.style.display='none';g.append(rule,box,out);svg.append(g);
svg.addEventListener('pointerleave',function(){g.style.display='none'});
svg.addEventListener('pointermove',function(e){
var m=svg.getScreenCTM();if(!m)return;var x=(e.clientX-m.e)/m.a;
if(x<X[2]||x>X[3]){g.style.display='none';return}
var rows=[],at=null;lines.forEach(function(l){var best=null;l.points.forEach(function(p){if(!best||Math.abs(p[0]-x)<Math.abs(best[0]-x))best=p});
if(best&&Math.abs(best[0]-x)<14){if(at===null||Math.abs(best[0]-x)<Math.abs(at-x))at=best[0];rows.push(l.name+' '+text(value(Y,best[1])))}});
if(!rows.length){g.style.display='none';return}
rows.unshift(d.xname+' '+text(value(X,at)));
rule.setAttribute('x1',at);rule.setAttribute('x2',at);rule.setAttribute('y1',Y[3]);rule.setAttribute('y2',Y[2]);
while(out.firstChild)out.firstChild.remove();
rows.forEach(function(r,i){var t=document.createElementNS(n,'tspan');t.textContent=r;t.setAttribute('dy',i?14:0);out.append(t)});
g.style.display='';var w=0;[].forEach.call(out.childNodes,function(t){w=Math.max(w,t.getComputedTextLength())});
var left=at+10+w+14>X[3]?at-w-22:at+8;[].forEach.call(out.childNodes,function(t){t.setAttribute('x',left+7)});
out.setAttribute('y',Y[3]+18);box.setAttribute('x',left);box.setAttribute('y',Y[3]+4);box.setAttribute('width',w+14);box.setAttribute('height',14*rows.length+8);
})});
)";

// The "sha256-..." source by which the Content-Security-Policy allows only this script.
std::string script_source(const std::string& script) {
  constexpr const char* kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const std::string hex = sha256_hex(script);
  std::string out = "sha256-";
  // 32 bytes are 42 digits of 6 bits and one of 4, which base64 fills up with zeros.
  for (size_t bit = 0; bit < 256; bit += 6) {
    unsigned value = 0;
    for (size_t i = bit; i < bit + 6; ++i) {
      const unsigned nibble = i < 256 ? static_cast<unsigned>(std::stoi(hex.substr(i / 4, 1), nullptr, 16)) : 0;
      value = 2 * value + (nibble >> (3 - i % 4) & 1);
    }
    out += kDigits[value];
  }
  return out + "=";
}

}  // namespace

std::string html_escaped(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const size_t length = character_length(text, i);
    const bool c1_control = length == 2 && c == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (length == 0 || c1_control || c == 127 || (c < 32 && c != '\n' && c != '\t')) {
      out += kReplacement;
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else {
      out.append(text, i, length);
    }
    i += length == 0 ? 1 : length;
  }
  return out;
}

std::string shortened(const std::string& text, size_t width) {
  size_t at = 0, characters = 0, cut = 0;  // cut: where width - 3 characters end
  while (at < text.size() && characters < width) {
    at += std::max<size_t>(1, character_length(text, at));
    if (++characters + 3 == width) cut = at;
  }
  return at >= text.size() ? text : text.substr(0, cut) + "...";
}

std::string html_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows) {
  std::string out = "<div class=\"scroll\"><table>";
  if (!header.empty()) {
    out += "<thead><tr>";
    for (const std::string& cell : header) out += "<th>" + cell + "</th>";
    out += "</tr></thead>";
  }
  out += "<tbody>\n";
  for (const std::vector<std::string>& row : rows) {
    out += "<tr>";
    for (const std::string& cell : row) out += "<td>" + cell + "</td>";
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string html_section(const std::string& title, const std::string& body) {
  return "<section>\n<h2>" + html_escaped(title) + "</h2>\n" + body + "</section>\n";
}

std::string html_page(const std::string& title, const std::string& subtitle, const std::string& body) {
  return "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
         "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
         // Whatever a run directory contains, the page runs only this script and loads nothing.
         "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';style-src 'unsafe-inline';"
         "script-src '" +
         script_source(kScript) + "'\">\n<title>" + html_escaped(title) + "</title>\n<style>" + kStyle + chart_style() +
         "</style>\n</head>\n<body>\n<main>\n<h1>" + html_escaped(title) + "</h1>\n<p class=\"sub\">" +
         html_escaped(subtitle) + "</p>\n" + body + "</main>\n<script>" + kScript + "</script>\n</body>\n</html>\n";
}

}  // namespace tmamba
