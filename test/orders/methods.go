package orders

import "context"

// The methods that only answer.

func (h *handler) GetOrder(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) UpdateOrder(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) DeleteOrder(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) ConfirmOrder(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) CancelOrder(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) HoldOrder(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) ReleaseOrder(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) SplitOrder(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) MergeOrders(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) CloneOrder(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) AddItem(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) RemoveItem(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) ChangeQuantity(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) ApplyDiscount(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) RemoveDiscount(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) CalculateTax(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) ChangeAddress(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) ValidateAddress(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) ChangePayment(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) AuthorizePayment(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) CapturePayment(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) RefundPayment(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) GetShipment(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) UpdateShipment(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) AddNote(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) AddLabel(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) RemoveLabel(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) ListOrders(_ context.Context, q *ListRequest, r *ListResponse) error {
	return h.list(q, r)
}
func (h *handler) SearchOrders(_ context.Context, q *ListRequest, r *ListResponse) error {
	return h.list(q, r)
}
func (h *handler) CountOrders(_ context.Context, q *ListRequest, r *ListResponse) error {
	return h.list(q, r)
}
func (h *handler) ListPayments(_ context.Context, q *ListRequest, r *ListResponse) error {
	return h.list(q, r)
}
func (h *handler) ListShipments(_ context.Context, q *ListRequest, r *ListResponse) error {
	return h.list(q, r)
}
func (h *handler) ListNotes(_ context.Context, q *ListRequest, r *ListResponse) error {
	return h.list(q, r)
}
func (h *handler) ListCustomers(_ context.Context, q *ListRequest, r *ListResponse) error {
	return h.list(q, r)
}
func (h *handler) RequestReturn(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
func (h *handler) ApproveReturn(_ context.Context, q *OrderRequest, r *OrderResponse) error {
	return h.order(q, r)
}
