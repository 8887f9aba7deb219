export interface Product {
  id: number;
  name: string;
  cents: number;
  stock: number;
}

export async function products({ db }: Env): Promise<Product[]> {
  const { results } = await db.prepare("SELECT id, name, cents, stock FROM products ORDER BY name").all<Product>();
  return results;
}

export function page(products: Product[], currency: string): Response {
  const rows = products.map(
    ({ id, name, cents, stock }) => `
      <tr>
        <td>${escaped(name)}<td>${(cents / 100).toFixed(2)} ${escaped(currency)}<td>${stock} left
        <td><form method="post" action="/orders">
          <input type="hidden" name="product" value="${id}">
          <input type="number" name="count" value="1" min="1" max="${stock}">
          <button ${stock ? "" : "disabled"}>Buy</button>
        </form>
      </tr>`,
  );
  const html = `<!doctype html>
    <html lang="en">
      <meta name="viewport" content="width=device-width">
      <title>Shop</title>
      <h1>Shop</h1>
      <table>${rows.join("")}</table>
    </html>`;
  return new Response(html, { headers: { "content-type": "text/html;charset=utf-8" } });
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
